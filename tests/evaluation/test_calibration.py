"""Calibration and the temperature that mends it, against their definitions, scikit-learn and scipy."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from scipy import optimize
from scipy.special import log_softmax, softmax

import compare_kit
import reference
from message_kit import says
from moslora.evaluation import read_results
from moslora.evaluation.calibration import BINS, FEWEST, calibration
from moslora.evaluation.display import on_calibration
from moslora.evaluation.results import Results, results_of
from moslora.runs.answers import TaskAnswers, order_key
from moslora.runs.settings import TaskRecord

OPTIONS = {"boolq": 2, "obqa": 4}


def drawn(n: int, *, temperature: float, seed: int = 0, characters: bool = False) -> dict[str, TaskAnswers]:
    """Answers of a model that is calibrated at this temperature: gold is drawn by softmax(s / T)."""
    draw = np.random.default_rng(seed)
    tasks = {}
    for task, k in OPTIONS.items():
        lengths = draw.integers(3, 30, (n, k)) if characters else np.ones((n, k), int)
        scores = draw.normal(0, 2, (n, k)) * lengths
        chances = softmax(scores / lengths / temperature, axis=1)
        gold = [int(draw.choice(k, p=row)) for row in chances]
        tasks[task] = TaskAnswers(
            ids=tuple(f"{task}/test/{row}" for row in draw.permutation(n)),
            gold=tuple(gold),
            cut=(False,) * n,
            scores=tuple(map(tuple, scores.tolist())),
            characters=tuple(map(tuple, lengths.tolist())) if characters else (),
            predicted=tuple(scores.argmax(axis=1).tolist()),
        )
    return tasks


def pooled(tasks: dict[str, TaskAnswers]) -> list[tuple[str, Sequence[float], int]]:
    """Id, deciding scores and right option of every question, in the random order of the ids' hashes."""
    rows = []
    for answers in tasks.values():
        scores = answers.scores
        if answers.characters:
            scores = [np.divide(s, c).tolist() for s, c in zip(answers.scores, answers.characters, strict=True)]
        rows += list(zip(answers.ids, scores, answers.gold, strict=True))
    return sorted(rows, key=lambda row: order_key(row[0]))


def best_temperature(rows: Sequence[tuple[str, Sequence[float], int]]) -> float:
    """By scipy, which minimises the loss itself."""

    def loss(log_temperature: float) -> float:
        return -sum(float(log_softmax(np.divide(s, np.exp(log_temperature)))[gold]) for _, s, gold in rows)

    found = optimize.minimize_scalar(loss, bracket=(-2, 2), options={"xtol": 1e-10})
    return float(np.exp(found.x))


@pytest.mark.parametrize(("temperature", "characters"), [(1.0, False), (0.4, True), (2.5, True)])
def test_error_and_temperature_are_those_of_their_definitions(temperature: float, characters: bool) -> None:
    tasks = drawn(90, temperature=temperature, characters=characters)
    found = calibration(tasks.values())
    assert found is not None
    rows = pooled(tasks)
    gold = [right for _, _, right in rows]
    probabilities = [softmax(scores).tolist() for _, scores, _ in rows]
    assert found.n == len(rows) == 180
    assert found.error == pytest.approx(reference.calibration_error(probabilities, gold, bins=BINS), abs=1e-9)
    assert found.confidence == pytest.approx(np.mean([max(row) for row in probabilities]))
    assert found.accuracy == np.mean([np.argmax(row) == right for row, right in zip(probabilities, gold, strict=True)])
    assert found.temperature == pytest.approx(best_temperature(rows), rel=1e-6)
    of_other_half = [best_temperature(rows[1::2]), best_temperature(rows[::2])]
    mended = [
        softmax(np.divide(scores, of_other_half[place % 2])).tolist() for place, (_, scores, _) in enumerate(rows)
    ]
    assert found.error_after == pytest.approx(reference.calibration_error(mended, gold, bins=BINS), abs=1e-6)


def test_error_is_that_of_scikit_learns_reliability_curve() -> None:
    curves = pytest.importorskip("sklearn.calibration", reason="lm-eval, a development dependency, brings it")
    tasks = drawn(300, temperature=0.5)
    rows = pooled(tasks)
    probabilities = [softmax(scores) for _, scores, _ in rows]
    confidence = [max(row) for row in probabilities]
    right = [int(np.argmax(row) == gold) for row, (_, _, gold) in zip(probabilities, rows, strict=True)]
    accuracies, confidences = curves.calibration_curve(right, confidence, n_bins=BINS, strategy="uniform")
    counts, _ = np.histogram(confidence, BINS, (0, 1))
    expected = (counts[counts > 0] * np.abs(accuracies - confidences)).sum() / len(rows)
    found = calibration(tasks.values())
    assert found is not None and found.error == pytest.approx(expected, abs=1e-9) and expected > 0.05


def test_the_temperature_that_made_the_answers_is_found_and_mends_them() -> None:
    for temperature in (0.3, 3.0):
        found = calibration(drawn(4000, temperature=temperature).values())
        assert found is not None and found.temperature == pytest.approx(temperature, rel=0.05)
        assert found.error_after is not None and found.error_after < 0.02 < 0.08 < found.error
    assert found.confidence > found.accuracy, "too sure, so that a higher temperature mends it"


def test_a_model_that_is_always_right_or_never_better_than_chance_has_no_temperature() -> None:
    tasks = drawn(90, temperature=1.0)
    for sign in (1, -1):
        answers = tasks["obqa"]
        best = tuple(int(np.argmax(np.multiply(sign, scores))) for scores in answers.scores)
        found = calibration([replace(answers, gold=best), replace(tasks["boolq"], gold=(), outcomes={})])
        assert found is None, "90 questions are few"
        found = calibration([replace(answers, gold=best), replace(answers, gold=best)])
        assert found is not None and found.temperature is found.error_after is None
        results = Results(compare_kit.SETTINGS, {}, None, None, calibration=found)
        assert says(on_calibration(results)[0], "no temperature")


def scored(tasks: dict[str, TaskAnswers]) -> Results:
    return results_of(compare_kit.SETTINGS, tasks, {task: TaskRecord(drift=0.1) for task in tasks})


def test_it_is_in_the_results_and_in_a_line_that_says_what_the_probabilities_are_of(tmp_path: Path) -> None:
    tasks = drawn(60, temperature=0.5, characters=True)
    results = scored(tasks)
    assert results.calibration == calibration(tasks.values()) is not None
    text = results.to_json()
    assert json.loads(text)["calibration"] == asdict(results.calibration)
    (tmp_path / "results.json").write_text(text, encoding="utf-8")
    assert read_results(tmp_path).calibration == results.calibration
    (line,) = on_calibration(results)
    of = results.calibration
    for number in (of.error, of.confidence, of.accuracy, of.error_after):
        assert f"{number:.3f}" in line
    assert says(line, "text, per character", f"temperature {of.temperature:.3g}", "two halves")


def test_few_questions_and_answers_without_scores_have_none() -> None:
    few = scored(drawn(FEWEST // 2 - 1, temperature=1.0))
    assert few.calibration is None and not on_calibration(few) and "calibration" not in json.loads(few.to_json())
    generated = {
        task: replace(answers, scores=(), texts=("true",) * 90, labels=("true",) * 90)
        for task, answers in drawn(90, temperature=1.0).items()
    }
    assert scored(generated).calibration is None
