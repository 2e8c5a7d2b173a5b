"""The numbers that are printed, by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from moslora.runs.evaluation import Evaluation
from moslora.runs.predictions import Prediction, argmax
from moslora.runs.settings import NOT_KNOWN
from moslora.verify.report import Report
from moslora.verify.verdict import Verdict


def test_answers_of_a_server_are_held_against_a_runs() -> None:
    """By hand, for two tasks of three questions: two other answers, both to the right option, one of them only by its
    characters. The tasks' mean gains (2/3 + 0)/2."""

    def prediction(task: str, place: int, gold: int, *scores: float) -> Prediction:
        return Prediction(f"{task}/{place}", task, gold, argmax(scores), scores, characters=(1, 2))

    same = [prediction("b", place, 0, -1, -4) for place in range(3)]
    ours = [prediction("a", 0, 0, -1, -4), prediction("a", 1, 1, -1, -4), prediction("a", 2, 1, -1, -3), *same]
    theirs = [prediction("a", 0, 0, -2, -8), prediction("a", 1, 1, -4, -1), prediction("a", 2, 1, -1, -1.8), *same]
    run = Evaluation.of(Path("run"), NOT_KNOWN, ours)
    server = Evaluation.of(Path(), NOT_KNOWN, theirs)
    found = Report.of(run, server, asked=6, how="asked as tokens")
    assert (found.same, found.answered) == (4, 6)
    assert found.effects["accuracy"].difference == pytest.approx(1 / 3)
    assert "same answer to 4 of 6" in found.lines
    quantised = replace(found, verdict=Verdict("quantised", "consistent with a quantisation"))
    assert quantised.lines[-1].startswith("consistent with a quantisation; accuracy +33.33 points (")
