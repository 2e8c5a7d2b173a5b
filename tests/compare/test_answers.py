"""The small files: what they keep of the predictions, and what of a damaged one is said."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax

from moslora.compare.answers import (
    ExperimentIndex,
    ExperimentRun,
    outcomes_of,
    read_index,
    read_outcomes,
    write_index,
    write_outcomes,
)
from moslora.errors import MosloraError, UsageError
from moslora.evaluation import Prediction
from study_kit import SETTINGS, drawn


def test_an_answer_is_kept_as_the_protocols_main_metric_has_it() -> None:
    """Per character, which turns the first answer around; in the order of the ids."""
    scores, characters = ((-6.0, -5.0, -9.0), (-2.0, -3.0, -4.0)), ((12, 2, 3), (1, 1, 1))
    predictions = [
        Prediction(id, "obqa", gold=0, prediction=int(np.argmax(s)), scores=s, characters=c)
        for id, s, c in zip(("obqa/test/7", "obqa/test/3"), scores, characters, strict=True)
    ]
    kept = outcomes_of(predictions, SETTINGS, recipe=drawn(0).recipe).tasks["obqa"]
    expected = [log_softmax(np.divide(s, c))[0] for s, c in zip(scores, characters, strict=True)]
    assert kept.ids == ("obqa/test/3", "obqa/test/7") and kept.correct == (1, 1) and kept.gold == (0, 0)
    assert kept.log_probability == pytest.approx(expected[::-1], abs=1e-6)
    generated = replace(predictions[0], scores=(), characters=(), prediction=None)
    settings = replace(SETTINGS, protocol="generate", primary="accuracy")
    kept = outcomes_of([generated], settings).tasks["obqa"]
    assert kept.correct == (0,) and kept.log_probability == ()


def test_a_base_is_not_trained() -> None:
    untrained = replace(SETTINGS, metadata={**SETTINGS.metadata, "adapter": None})
    assert outcomes_of([], SETTINGS, recipe=drawn(4).recipe, facts={"steps": 1}).seed == 4
    found = outcomes_of([], untrained, recipe=drawn(4).recipe, facts={"steps": 1})
    assert found.seed is None and found.recipe is None and found.facts == {}


def test_files_are_read_as_they_were_written(tmp_path: Path) -> None:
    run = replace(drawn(1), provenance={"version": "0.1.0"})
    write_outcomes(tmp_path / "run.json", run)
    assert read_outcomes(tmp_path / "run.json") == run
    index = ExperimentIndex("small", ("a", "b"), "accuracy", (ExperimentRun("a", 3, 1e-3, "runs/a"),))
    write_index(tmp_path, index)
    assert read_index(tmp_path) == index and index.runs[0].results == "results/a-0.001-3.json"


def test_damage_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with pytest.raises(UsageError, match=r"run\.json: cannot be read: No such file"):
        read_outcomes(path)
    write_outcomes(path, drawn(1))
    whole = path.read_text(encoding="utf-8")
    damaged = (whole[:-50], "[]", whole.replace('"gold":[', '"gold":[7,', 1), whole.replace('"seed":1', '"sed":1', 1))
    for text in damaged:
        path.write_text(text, encoding="utf-8")
        with pytest.raises(MosloraError, match=r"run\.json: not the outcomes of a run") as fault:
            read_outcomes(path)
        assert "\n" not in str(fault.value)
