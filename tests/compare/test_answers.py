"""Answers: what is kept of the predictions; and an experiment's index."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax

from compare_kit import SETTINGS
from moslora.compare.index import ExperimentIndex, ExperimentRun, read_index
from moslora.errors import MosloraError
from moslora.runs.answers import TaskAnswers
from moslora.runs.evaluation import Evaluation
from moslora.runs.predictions import Prediction


def answers(predictions: Sequence[Prediction]) -> Mapping[str, TaskAnswers]:
    return Evaluation.of(Path(), SETTINGS, predictions).in_order.tasks


def test_an_answer_is_kept_as_the_protocols_main_metric_has_it() -> None:
    """Per character, which turns the first answer around; in the order of the ids."""
    scores, characters = ((-6.0, -5.0, -9.0), (-2.0, -3.0, -4.0)), ((12, 2, 3), (1, 1, 1))
    predictions = [
        Prediction(id, "obqa", gold=0, prediction=int(np.argmax(s)), scores=s, characters=c)
        for id, s, c in zip(("obqa/test/7", "obqa/test/3"), scores, characters, strict=True)
    ]
    predictions.append(replace(predictions[0], id="boolq/test/1", task="boolq"))
    tasks = answers(predictions)
    assert list(tasks) == ["obqa", "boolq"], "in the order in which they were asked"
    kept = tasks["obqa"]
    expected = [log_softmax(np.divide(s, c))[0] for s, c in zip(scores, characters, strict=True)]
    assert kept.ids == ("obqa/test/3", "obqa/test/7") and kept.outcomes["accuracy"] == (1, 1) and kept.gold == (0, 0)
    assert kept.outcomes["log_probability"] == pytest.approx(expected[::-1], abs=1e-6)
    text = Prediction("mine/a", "mine", gold=0, prediction=0, scores=(-300.5,), bytes=400)
    kept = answers([text])["mine"]
    assert kept.outcomes == {"nats_per_byte": (300.5 / 400,)} and kept.gold == ()
    generated = replace(predictions[0], scores=(), characters=(), prediction=None)
    kept = answers([generated])["obqa"]
    assert kept.outcomes == {"accuracy": (0,)}


def test_the_index_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_index(tmp_path) is None
    index = ExperimentIndex("small", ("a", "b"), "accuracy", (ExperimentRun("a", 3, 1e-3, "runs/a"),), (("a", "c"),))
    index.write(tmp_path)
    assert read_index(tmp_path) == index
    (tmp_path / "experiment.json").write_text(json.dumps({"name": "small"}))
    with pytest.raises(MosloraError, match=r"experiment\.json"):
        read_index(tmp_path)
