"""The quickstart: its dtype, where it goes on, what it prints."""

import shlex
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import typer

from compare_kit import CONDITIONS
from moslora import quickstart as module
from moslora.cli import app
from moslora.errors import Interrupted, UsageError
from moslora.evaluation.loading import load_model
from moslora.quickstart import PROBED_STEPS, SIZES, fast_dtype, overrides, quickstart
from moslora.recipe import load_recipe
from moslora.runs.conditions import TaskRecord
from moslora.runs.predictions import Prediction
from moslora.runs.results import Results, summarise


@pytest.mark.parametrize(
    ("cuda", "bfloat16", "units", "limit", "dtype"),
    [
        (False, False, {"avx512_bf16": True}, None, "bfloat16"),
        (False, False, {"avx512_bf16": True}, "avx512_core", "float32"),
        (False, False, {"amx_bf16": True, "avx512_bf16": False}, None, "bfloat16"),
        (False, False, {"neon": True}, None, "float32"),
        (True, True, {}, None, "bfloat16"),
        (True, False, {"avx512_bf16": True}, None, "float16"),
    ],
)
def test_dtype_follows_the_hardware(monkeypatch, cuda, bfloat16, units, limit, dtype):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(cuda))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16 or including_emulation)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    assert fast_dtype() == dtype


@pytest.mark.parametrize(
    ("typed", "speed", "rows", "limit"), [(None, 1e6, 330, 256), (None, 1.0, 110, 192), ("half", 1e6, 165, 192)]
)
def test_a_new_quickstart_trains_the_size_that_it_announces(tmp_path, monkeypatch, capsys, typed, speed, rows, limit):
    trained: list[list[str]] = []
    monkeypatch.setattr(module, "gpus", lambda: 0)
    monkeypatch.setattr(module, "_measure", lambda changes, processes: (speed, 1 / speed))
    monkeypatch.setattr(module, "train_in_processes", lambda words, **_: trained.append(words))
    monkeypatch.setattr(module, "open_target", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(Interrupted):
        quickstart(out=tmp_path, size=typed)
    recipe = load_recipe(trained[0][0], trained[0][1:])
    assert isinstance(recipe.data.rows, dict)
    assert (recipe.data.rows["boolq"], recipe.evaluation.limit) == (rows, limit)
    assert recipe.training.validation_questions == 0
    said = capsys.readouterr().out
    assert f"{speed:,.0f} tokens" in said
    assert ("--size full" in said) == (rows < 330)


@pytest.mark.parametrize(
    ("training", "scoring", "size"), [(500, 0.1, "full"), (300, 0.3, "half"), (500, 0.9, "third"), (160, 0.1, "third")]
)
def test_slow_training_and_slow_scoring_choose_a_smaller_size(monkeypatch, training, scoring, size):
    """Each alone is enough."""
    monkeypatch.setattr(module, "gpus", lambda: 0)
    monkeypatch.setattr(module, "_measure", lambda changes, processes: (training, scoring))
    assert module._choose_size(None, load_recipe(module.RECIPE), []) == size


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["own", "transformers"])
def test_the_measured_engine_is_the_engine_of_the_run(world, monkeypatch, engine):
    """Two real workers train, and the model that they leave is scored."""
    scored = []

    def load(target):
        scored.append(load_model(target))
        assert target.trained.manifest["step"] == 1 + PROBED_STEPS and target.trained.manifest["engine"] == engine
        return scored[-1]

    monkeypatch.setattr(module, "RECIPE", str(world / "recipe.yaml"))
    monkeypatch.setattr(module, "load_model", load)
    training, scoring = module._measure([f"model.engine={engine}"], processes=2)
    assert training > 0 and scoring > 0
    assert [model.moslora_engine for model in scored] == [engine]


def test_quickstart_continues_its_own_run_only(tmp_path, monkeypatch):
    """With what the run recorded, which may be of another version of the recipe."""
    trained: list[list[str]] = []
    monkeypatch.setattr(module, "train_in_processes", lambda words, **_: trained.append(words))
    monkeypatch.setattr(module, "open_target", Mock(side_effect=KeyboardInterrupt))
    own = load_recipe(module.RECIPE, ["model.dtype=float32", "data.rows.boolq=60", "adapter.rank=8"])
    (tmp_path / "recipe.yaml").write_text(own.to_yaml(), encoding="utf-8")
    with pytest.raises(Interrupted):
        quickstart(out=tmp_path)
    assert trained == [[str(tmp_path), "--resume"]]
    (tmp_path / "recipe.yaml").write_text(load_recipe(module.RECIPE, ["name=other"]).to_yaml(), encoding="utf-8")
    with pytest.raises(UsageError, match=r"other.*--out"):
        quickstart(out=tmp_path)


@pytest.mark.parametrize(
    ("size", "right", "says"),
    [
        ("full", 60, "tuned answers 37.5 points more of 80 questions right than base"),
        ("full", 31, "No difference between tuned and base is shown"),
        ("third", 60, "tuned answers 37.5 points more of 80 questions right than base"),
    ],
)
def test_quickstart_ends_with_conclusions(tmp_path, monkeypatch, size, right, says):
    """The base answers 30 of 80 questions rightly, the tuned model ``right``."""

    def results(target: bool) -> tuple[Results, Path]:
        rightly = 30 if target else right
        predictions = []
        for place in range(80):
            chosen = int(place >= rightly)
            scores = (-0.5, -0.7) if chosen == 0 else (-0.7, -0.5)
            predictions.append(Prediction(f"obqa/test/{place}", "obqa", gold=0, prediction=chosen, scores=scores))
        records = {"obqa": TaskRecord()}
        return summarise(CONDITIONS, predictions, records), tmp_path / str(target)

    for name in ("train_in_processes", "merge"):
        monkeypatch.setattr(module, name, Mock())
    monkeypatch.setattr(module, "_measure", lambda changes, processes: (1e6, 1e-6))
    monkeypatch.setattr(module, "open_target", lambda target, base: base)
    monkeypatch.setattr(module, "evaluate_target", results)
    monkeypatch.setattr(module, "gpus", lambda: 0)
    table, lines = quickstart(out=(out := tmp_path / "my run"), size=size)
    assert table[0][:5] == ["task", "n", "majority", "base", "tuned"]
    assert table[1][:6] == ["obqa", "80", "100.0", "37.5", f"{right / 0.8:.1f}", f"{(right - 30) / 0.8:+.2f}"]
    assert lines[-7].startswith(says) and "nats" in lines[-6]
    assert right != 60 or lines[-6].startswith("tuned predicts the right option of 80 questions 0.0750 nats better")
    group, commands = typer.main.get_command(app), [shlex.split(line, comments=True) for line in lines[-4:]]
    assert [words[:2] for words in commands] == [["moslora", name] for name in ("ask", "compare", "eval", "train")]
    for words in commands:
        assert words[2] in (str(out), "llama3-8b")
        group.commands[words[1]].make_context(words[1], words[2:])  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", SIZES)
def test_size_decides_rows_and_questions(size):
    full = load_recipe("smollm2-135m")
    recipe = load_recipe("smollm2-135m", overrides(size, full))
    assert isinstance(full.data.rows, dict) and isinstance(recipe.data.rows, dict)
    part, questions = SIZES[size]
    for task, rows in full.data.rows.items():
        assert abs(recipe.data.rows[task] - rows / part) <= 0.5
    assert recipe.evaluation.limit == questions
    assert questions % 64 == 0, "questions are computed together by 64"
