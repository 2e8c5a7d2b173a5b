"""Examines one method's finished run: counted, timed, resumed, evaluated, merged and exported.

A process of its own, started by methods.py.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from benchmarks.commands import command
from benchmarks.timing import alternate
from moslora.adapters import named_adapters
from moslora.base.shapes import meta_model
from moslora.convert.export import export_peft
from moslora.convert.merge import merge
from moslora.errors import UsageError
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.target import open_target
from moslora.recipe import AdapterSection, Recipe, load_recipe
from moslora.runs.manifest import RECIPE, WEIGHTS
from moslora.runs.run import Run
from moslora.training import train_recipe
from moslora.training.loop import TrainState, train
from moslora.training.prepare import adapt, prepare

METHODS = (
    "lora",
    "lora-moe-dense",
    "lora-moe-topk",
    "moelora",
    "gate-inside",
    "input-split",
    "two-subspace",
    "controls/two-subspace-normalized",
    "controls/two-subspace-hadamard",
    "kronecker",
    "moslora",
    "controls/moslora-frozen",
    "controls/moslora-folded",
    "controls/lora-scaled",
    "flora",
    "lora-xs",
    "lora-fa",
    "adalora",
    "rslora",
    "lora-plus",
    "pissa",
    "dora",
)
"""The recipes under ``methods/``, in the order of docs/methods.md."""

BASE = "smollm2-135m"
"""The recipe with the model."""

STEPS = 6
"""Of the run whose memory is measured; it is stopped after half of them, and resumed."""

PAIRS = 12
"""Timed steps of a method, each paired with one of LoRA."""

WARMUP = 2
"""Steps of both that are not timed."""

ROWS = 8
"""Of a step."""

QUESTIONS = 8
"""Scored per task."""

TASKS = ("arc_easy", "obqa")
"""Two, so that a task gate has tasks to distinguish."""


def recipe_text(method: str, *, steps: int) -> str:
    """The recipe of one method with the base, shortened."""
    sections = {
        "extends": [BASE, f"methods/{method}"],
        "name": method.replace("/", "-"),
        "data": {"tasks": list(TASKS), "rows": ROWS * steps, "validation_rows": 0},
        "training": {
            "epochs": None,
            "max_steps": steps,
            "global_batch_size": ROWS,
            "warmup_steps": 1,
            "log_every": 1,
            "checkpoint_every": steps // 2,
        },
        "evaluation": {"tasks": list(TASKS), "limit": QUESTIONS},
    }
    return json.dumps(sections)  # JSON is YAML


def examine(method: str, folder: Path) -> dict[str, Any]:
    """Everything measured of a method's run in ``folder/run``."""
    run = folder / "run"
    resumed = folder / "resumed"
    recipe = load_recipe(run / RECIPE)
    section = recipe.adapter
    base = load_recipe(BASE).adapter
    assert isinstance(section, AdapterSection)
    assert isinstance(base, AdapterSection)
    found = {
        "mixer": section.mixer.kind,
        "dropout": section.dropout,
        "parameters": parameters(recipe, rank=base.rank),
        "seconds": times(method, folder),
        "resumed_difference": resume(run, resumed, step=STEPS // 2),
        "merge": becomes(merge, run, folder / "merged"),
        "export": becomes(export_peft, run, folder / "exported"),
    }
    results, _ = evaluate_target(open_target(str(resumed), dtype="float32"))  # which does not need whole blocks
    for prediction in results.predictions:
        if not torch.tensor(prediction.scores).isfinite().all():
            raise RuntimeError("a score is not finite")
    shutil.rmtree(resumed)
    return found


def times(method: str, folder: Path) -> list[list[float]]:
    """Seconds of LoRA's steps and of the method's, measured in turns."""
    accelerator = Accelerator(mixed_precision="no")
    steps = []
    for name in ("lora", method):
        file = folder / "timed.yaml"
        file.write_text(recipe_text(name, steps=WARMUP + PAIRS), encoding="utf-8")
        state, _ = prepare(accelerator, load_recipe(file))
        steps.append(one_by_one(state))
    return alternate(*steps, repetitions=PAIRS, warmup=WARMUP)


def one_by_one(state: TrainState) -> Callable[[], object]:
    """Runs the next step of a training by the training loop itself: a run that is told to stop after it."""
    done = 0

    def step() -> None:
        nonlocal done
        done = train(
            state,
            first_step=done,
            report=lambda step, **values: None,
            checkpoint=lambda step: None,
            validate=lambda step: False,
            stop_requested=lambda: True,
        )

    return step


def resume(run: Path, out: Path, *, step: int) -> float:
    """Resumes in ``out`` from a checkpoint of ``run``, as after a crash.

    Returns:
        The largest difference between the two runs' adapters.
    """
    shutil.copytree(run, out, ignore=shutil.ignore_patterns("adapter", "checkpoints"))
    shutil.copytree(Run(run).checkpoint(step), Run(out).checkpoint(step))
    resumed = train_recipe(load_recipe(out / RECIPE), out=out, resuming=True)
    ours = load_file(resumed / WEIGHTS)
    whole = load_file(Run(run).result / WEIGHTS)
    if ours.keys() != whole.keys():
        raise RuntimeError("the resumed run has different weights from the uninterrupted one")
    return max(float((ours[key] - whole[key]).abs().max()) for key in whole)


def parameters(recipe: Recipe, *, rank: int) -> dict[str, int]:
    """The trainable parameters of LoRA of this ``rank``, and how many more or fewer the recipe's model has."""
    model = adapt(meta_model(recipe.model), recipe)
    lora = sum(rank * (layer.in_features + layer.out_features) for _, layer in named_adapters(model))
    counted = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    return {"lora": lora, "added": counted - lora}


def becomes(convert: Callable[..., object], run: Path, out: Path) -> str:
    """Whether a run can be merged or exported: ``yes``, ``per task`` or ``no``."""
    tried: dict[str, dict[str, str]] = {"yes": {}, "per task": {"task": TASKS[0]}}
    for verdict, options in tried.items():
        try:
            convert(run / "adapter", out=out, **options)
        except UsageError:
            continue
        finally:
            shutil.rmtree(out, ignore_errors=True)
        return verdict
    return "no"


if __name__ == "__main__":
    command(examine, examine)
