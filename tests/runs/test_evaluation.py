"""An evaluation as columns: restricted, in order, with what its scores give, against the predictions themselves."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from compare_kit import CONDITIONS
from moslora.errors import MosloraError
from moslora.evaluation.journal import Journal
from moslora.runs.answers import TaskAnswers
from moslora.runs.conditions import TaskRecord
from moslora.runs.evaluation import Evaluation, is_finished, read_evaluation
from moslora.runs.outcomes import with_outcomes
from moslora.runs.predictions import Prediction

TASKS = {"boolq": 2, "obqa": 4}


def predictions():
    """Twenty of each task, not in the order of their ids, the tasks one after the other."""
    draw = np.random.default_rng(3)
    found = []
    for task, options in TASKS.items():
        for row in draw.permutation(20):
            scores = tuple(draw.normal(-9, 3, options).round(6).tolist())
            characters = tuple(draw.integers(1, 9, options).tolist())
            gold = int(draw.integers(options))
            id = f"{task}/test/{row:02}"
            found.append(
                Prediction(id, task, gold, int(np.argmax(scores)), scores, characters, truncated=bool(row < 3))
            )
    return found


def test_columns_equal_the_predictions():
    every = predictions()
    evaluation = Evaluation.of(Path(), CONDITIONS, every)
    assert list(evaluation.tasks) == list(TASKS)
    for task, answers in evaluation.tasks.items():
        rows = sorted((row for row in every if row.task == task), key=lambda row: row.id)
        assert answers.ids == tuple(row.id for row in rows)
        assert answers.chosen == tuple(np.argmax(row.deciding_scores) for row in rows)
        assert answers.truncated == tuple(row.truncated for row in rows) and sum(answers.truncated) == 3
        right = [float(np.argmax(np.divide(row.scores, row.characters)) == row.gold) for row in rows]
        assert answers.outcomes["accuracy"] == tuple(right) and 0 < sum(right) < 20
        logs = [log_softmax(np.divide(row.scores, row.characters))[row.gold] for row in rows]
        assert answers.outcomes["log_probability"] == pytest.approx(logs, abs=1e-9)
        summed = [log_softmax(row.scores)[row.gold] for row in rows]
        assert answers.outcomes["log_probability_summed"] == pytest.approx(summed, abs=1e-9)
        assert np.mean(summed) < np.mean(logs) - 0.1, "another number, on another scale"
        labels = with_outcomes(replace(answers, characters=(), outcomes={})).outcomes
        assert labels["log_probability"] == answers.outcomes["log_probability_summed"]
        assert "log_probability_summed" not in labels, "there is one such number where nothing is divided"


def test_the_brier_score_is_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics", reason="lm-eval, a development dependency, brings it")
    for task, options in TASKS.items():
        answers = Evaluation.of(Path(), CONDITIONS, predictions()).tasks[task]
        rows = zip(answers.scores, answers.characters, strict=True)
        probabilities = [softmax(np.divide(scores, characters)) for scores, characters in rows]
        found = answers.outcomes["brier"]
        for column, p, gold in zip(found, probabilities, answers.gold, strict=True):
            expected = metrics.brier_score_loss([gold], [p], labels=range(options), scale_by_half=False)
            assert column == pytest.approx(expected, abs=1e-9) and 0 < column < 2
        mean = metrics.brier_score_loss(answers.gold, probabilities, labels=range(options), scale_by_half=False)
        assert np.mean(found) == pytest.approx(mean)
    generated = replace(answers, scores=(), characters=(), outcomes={}, text=("a",) * 20, answer=("a",) * 20)
    assert list(with_outcomes(generated).outcomes) == ["accuracy"]


def test_selected_questions_are_sorted_by_id():
    every = predictions()
    questions = {"obqa": {f"obqa/test/{row:02}" for row in (7, 1, 12, 99)}, "siqa": {"siqa/test/01"}}
    evaluation = Evaluation.of(Path(), CONDITIONS, every).only(questions)
    ((task, answers),) = evaluation.tasks.items()
    by_id = {row.id: row for row in every}
    assert (task, answers.ids) == ("obqa", ("obqa/test/01", "obqa/test/07", "obqa/test/12"))
    assert answers.scores == tuple(by_id[id].scores for id in answers.ids)
    assert answers.gold == tuple(by_id[id].gold for id in answers.ids)
    assert answers.at([]).ids == () and answers.at([]).outcomes["accuracy"] == ()


def test_stored_outcomes_are_kept_and_others_computed():
    whole = Evaluation.of(Path(), CONDITIONS, predictions()).tasks["obqa"]
    without = TaskAnswers(whole.ids, whole.gold, whole.outcomes, truncated=whole.truncated)
    assert with_outcomes(without) == without, "without scores nothing is added"
    part = replace(whole, outcomes={"accuracy": (0.5,) * 20}, prediction=())
    assert with_outcomes(part).outcomes == {**whole.outcomes, "accuracy": (0.5,) * 20}


def test_interrupted_tasks_are_left_out(tmp_path):
    journal = Journal(tmp_path, CONDITIONS)
    journal.record({"boolq": TaskRecord(asked=20), "obqa": TaskRecord(asked=30)})
    journal.keep(predictions())
    found = read_evaluation(tmp_path)
    assert (is_finished(tmp_path), found.unfinished) == (False, {"obqa": (20, 30)})
    assert list(found.tasks) == list(TASKS) and list(found.complete.tasks) == ["boolq"]
    assert found.conditions == CONDITIONS and found.records["obqa"].asked == 30
    journal.finish()
    assert is_finished(tmp_path)
    (tmp_path / "settings.json").write_text(json.dumps({"settings": {}, "tasks": {}}))
    with pytest.raises(MosloraError, match="not an evaluation's settings"):
        read_evaluation(tmp_path)
