"""The quickstart: its dtype, where it goes on, the table, and a verdict that can say no."""

import math
import shlex
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import typer

from moslora import quickstart as module
from moslora.cli import app
from moslora.errors import Interrupted, UsageError
from moslora.evaluation import Prediction
from moslora.evaluation.results import Results, Settings, summarise
from moslora.quickstart import comparison, fast_dtype, majority, quickstart, verdict
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


@pytest.mark.parametrize(
    ("cuda", "bfloat16", "units", "dtype"),
    [
        (False, False, {"avx512_bf16": True}, "bfloat16"),
        (False, False, {"amx_bf16": True, "avx512_bf16": False}, "bfloat16"),
        (False, False, {"amx_bf16": False, "avx512_f": True}, "float32"),
        (False, False, {"neon": True}, "float32"),
        (True, True, {}, "bfloat16"),
        (True, False, {"avx512_bf16": True}, "float16"),
    ],
)
def test_the_dtype_is_the_one_that_the_hardware_multiplies(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, bfloat16: bool, units: dict[str, bool], dtype: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16 or including_emulation)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    assert fast_dtype() == dtype


def test_what_to_try_next_are_commands_that_parse(tmp_path: Path) -> None:
    lines = module._next(tmp_path / "my run")[1:]
    commands = [shlex.split(line, comments=True) for line in lines]
    assert [words[:2] for words in commands] == [["moslora", name] for name in ("ask", "eval", "train")]
    assert all(words[2] == str(tmp_path / "my run") for words in commands[:2])
    for words in commands:
        group = typer.main.get_command(app)
        group.commands[words[1]].make_context(words[1], words[2:])  # type: ignore[attr-defined]


def test_a_quickstart_goes_on_where_it_was_begun_and_in_no_other_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what the run recorded, which may be of another version of the recipe."""
    trained: list[list[str]] = []
    monkeypatch.setattr(module, "_train", trained.append)
    monkeypatch.setattr(module, "open_target", Mock(side_effect=KeyboardInterrupt))
    own = load_recipe(module.RECIPE, ["model.dtype=float32", "data.rows.boolq=60", "adapter.rank=8"])
    (tmp_path / "recipe.yaml").write_text(own.to_yaml(), encoding="utf-8")
    with pytest.raises(Interrupted):
        quickstart(out=tmp_path)
    assert trained == [[str(tmp_path), "--resume"]]
    (tmp_path / "recipe.yaml").write_text(load_recipe(module.RECIPE, ["name=other"]).to_yaml(), encoding="utf-8")
    with pytest.raises(UsageError, match=r"other.*--out"):
        quickstart(out=tmp_path)
