"""The quickstart's arithmetic: what fits into the time, the table, and a verdict that can say no."""

import math
from pathlib import Path

import numpy as np
import pytest

from moslora import quickstart as module
from moslora.errors import UsageError
from moslora.evaluation import Prediction
from moslora.evaluation.batches import BLOCK_SIZE
from moslora.evaluation.results import Results, Settings, summarise
from moslora.quickstart import Speed, begun_recipe, comparison, fitting_recipe, majority, verdict
from moslora.recipe import load_recipe


def results(right: dict[str, list[bool]], *, confidence: float = 1.0) -> Results:
    """Three-option questions, a third of them with gold 0, 1 and 2; ``right`` says which were answered rightly."""
    predictions = []
    for task, answers in right.items():
        for i, good in enumerate(answers):
            gold = i % 3
            chosen = gold if good else (gold + 1) % 3
            scores = tuple(confidence if option == chosen else 0.0 for option in range(3))
            predictions.append(
                Prediction(
                    id=f"{task}/{i}", task=task, gold=gold, prediction=chosen, scores=scores, characters=(1, 1, 1)
                )
            )
    settings = Settings(
        protocol="cloze",
        format="cloze",
        primary="accuracy_per_character",
        dtype="float32",
        batch_tokens=1,
        block_size=1,
        beams=None,
        max_length=None,
        data={},
        metadata={},
    )
    return summarise(settings, predictions, {})


BASE = {"obqa": [i % 2 == 0 for i in range(90)], "siqa": [i % 3 == 0 for i in range(60)]}
TUNED = {"obqa": [i % 5 != 0 for i in range(90)], "siqa": [i % 3 == 0 for i in range(60)]}


def test_the_table_has_the_paired_difference_of_every_task() -> None:
    table = comparison(results(BASE), results(TUNED))
    assert [row[0] for row in table] == ["task", "obqa", "siqa", "average"]
    per_question = np.array(TUNED["obqa"], float) - np.array(BASE["obqa"], float)
    mean, error = per_question.mean(), per_question.std(ddof=1) / math.sqrt(90)
    obqa = dict(zip(table[0], table[1], strict=True))
    assert obqa["n"] == "90" and obqa["majority"] == "33.3" and obqa["base"] == "50.0" and obqa["tuned"] == "80.0"
    assert obqa["difference ± s.e."] == f"{100 * mean:+.1f} ± {100 * error:.1f}"
    average = dict(zip(table[0], table[3], strict=True))
    assert average["difference ± s.e."] == f"{100 * mean / 2:+.1f} ± {100 * error / 2:.1f}"
    right_base = math.log(math.e / (math.e + 2)), math.log(1 / (math.e + 2))
    assert obqa["log p base"] == f"{np.mean([right_base[0] if good else right_base[1] for good in BASE['obqa']]):.3f}"


def test_the_verdict_says_yes_no_and_which_tasks_did_not_move() -> None:
    good = verdict(results(BASE), results(TUNED))
    assert "against the base model: above two standard errors" in good[0]
    assert "against the majority class: above two standard errors" in good[1]
    assert "nats: higher" in good[2]
    assert good[3] == "within two standard errors of no change: siqa"
    same = verdict(results(BASE), results(BASE))
    assert "against the base model: NOT above" in same[0] and "nats: NOT higher" in same[2]
    assert same[3] == "within two standard errors of no change: obqa, siqa"


def test_the_majority_class_is_one_position_for_all_questions_of_a_task() -> None:
    predictions = results({"obqa": [True] * 7}).predictions  # golds 0 1 2 0 1 2 0
    constant = majority(predictions)
    assert {p.prediction for p in constant} == {0}
    assert sum(p.prediction == p.gold for p in constant) == 3
    assert all(p.deciding_scores.index(max(p.deciding_scores)) == 0 for p in constant)


@pytest.mark.parametrize(("row_seconds", "whole"), [(0.001, True), (0.1, False)])
def test_a_slow_machine_gets_fewer_rows_and_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], row_seconds: float, whole: bool
) -> None:
    speeds = {"bfloat16": row_seconds, "float32": 2 * row_seconds}
    monkeypatch.setattr(
        module, "probe", lambda recipe, dtype: Speed(dtype, speeds[dtype], question_seconds=row_seconds)
    )
    monkeypatch.setattr(module.torch.cuda, "is_available", lambda: False)
    recipe, full = fitting_recipe(), load_recipe(module.RECIPE)
    said = capsys.readouterr().out
    assert recipe.model.dtype == "bfloat16" and "bfloat16 is faster here" in said
    if whole:
        assert recipe.data == full.data and recipe.evaluation == full.evaluation
        return
    assert "instead of" in said
    rows, questions = sum(recipe.data.rows.values()), 2 * 8 * recipe.evaluation.limit
    assert (rows + questions) * row_seconds <= module.BUDGET_SECONDS + 1
    assert rows < sum(full.data.rows.values()) and recipe.evaluation.limit % BLOCK_SIZE == 0
    assert all(count >= module.LEAST_ROWS for count in recipe.data.rows.values())


def test_a_quickstart_goes_on_where_it_was_begun_and_in_no_other_run(tmp_path: Path) -> None:
    fitted = ["model.dtype=float32", "data.rows.boolq=60", "evaluation.limit=40"]
    recipe = load_recipe(module.RECIPE, fitted)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert begun_recipe(tmp_path) == recipe
    for override, sections in (("seed=5", "seed"), ("adapter.rank=8", "adapter"), ("data.max_length=9", "data")):
        (tmp_path / "recipe.yaml").write_text(load_recipe(module.RECIPE, [*fitted, override]).to_yaml())
        with pytest.raises(UsageError, match=rf"holds a run of another recipe than the quickstart's \({sections}\)"):
            begun_recipe(tmp_path)
