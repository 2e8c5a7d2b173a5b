"""The numbers that are printed, by hand."""

from pathlib import Path

import pytest

from compare_kit import CONDITIONS
from message_kit import says
from moslora.runs.evaluation import Evaluation
from moslora.runs.predictions import Prediction, argmax
from moslora.verify.evidence import same_answers
from moslora.verify.report import Report, effects_of
from moslora.verify.verdict import Verdict


def test_answers_of_a_server_are_held_against_a_runs():
    """By hand, for two tasks of three questions: two other answers, both to the right option, one of them only by its
    characters. The tasks' mean gains (2/3 + 0)/2."""

    def prediction(task, place, gold, *scores):
        return Prediction(f"{task}/{place}", task, gold, argmax(scores), scores, characters=(1, 2))

    others = [prediction("b", place, 0, -1, -4) for place in range(3)]
    ours = [prediction("a", 0, 0, -1, -4), prediction("a", 1, 1, -1, -4), prediction("a", 2, 1, -1, -3), *others]
    theirs = [prediction("a", 0, 0, -2, -8), prediction("a", 1, 1, -4, -1), prediction("a", 2, 1, -1, -1.8), *others]
    run = Evaluation.of(Path("run"), CONDITIONS, ours)
    server = Evaluation.of(Path(), CONDITIONS, theirs)
    effects = effects_of(server, run)
    assert effects["accuracy"].difference == pytest.approx(1 / 3)
    same = same_answers(server, run)
    assert len(same) == 4
    quantised = Verdict("quantised", "consistent with a quantisation")
    found = Report("http://here", "", Path("run"), 6, 6, len(same), "asked as tokens", effects, quantised, None, 0.0)
    assert "same answer to 4 of 6" in found.printed and found.printed[-1] == "consistent with a quantisation"
    assert any(says(line, "accuracy", "server − run +33.33 (", "points") for line in found.printed)


def test_texts_without_option_are_compared_by_beginning():
    """A run's text ends where its answer is decided, and a server's does not."""
    pairs = [("Birds.\n### Response:", "Birds.\n### Response:\nBirds"), ("Birds", "Fish"), ("", "Fish"), ("", " ")]
    ours, theirs = (
        Evaluation.of(Path(), CONDITIONS, [Prediction(f"a/{n}", "a", 0, None, text=one) for n, one in enumerate(texts)])
        for texts in zip(*pairs, strict=True)
    )
    assert same_answers(ours, theirs) == same_answers(theirs, ours) == {"a/0", "a/3"}
