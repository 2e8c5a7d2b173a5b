"""Examines one method's finished run: counted, timed, resumed, evaluated, merged and exported.

A process of its own, started by methods.py: ``python -m benchmarks.article.method_checks METHOD FOLDER SETTINGS``.
"""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from benchmarks.timing import alternate
from moslora.adapters import named_adapters
from moslora.base.shapes import meta_model
from moslora.convert.export import export_peft
from moslora.convert.merge import merge
from moslora.errors import UsageError
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.target import open_target
from moslora.recipe import AdapterSection, Recipe, load_recipe
from moslora.runs.manifest import RECIPE
from moslora.runs.run import METRICS, RUN, Run
from moslora.training import train_recipe
from moslora.training.loop import train
from moslora.training.prepare import adapt, prepare


@dataclass(frozen=True)
class Sizes:
    """Of one adapted layer: its features, LoRA's rank, and what the recipe says of its adapter."""

    d_in: int
    d_out: int
    r: int
    own_r: int
    k: int
    d_e: int
    t: int


@dataclass(frozen=True)
class Method:
    """A recipe under ``methods/``, and its trainable parameters per layer besides LoRA's r · (d_in + d_out)."""

    recipe: str
    formula: str
    added: Callable[[Sizes], int]


METHODS = (
    Method("lora", "0", lambda s: 0),
    Method("lora-moe-dense", "k · d_in", lambda s: s.k * s.d_in),
    Method("lora-moe-topk", "k · d_in", lambda s: s.k * s.d_in),
    Method("moelora", "(k + t + 1) · d_e", lambda s: (s.k + s.t + 1) * s.d_e),
    Method("gate-inside", "2k · d_in", lambda s: 2 * s.k * s.d_in),
    Method("input-split", "−r · d_in · (1 − 1/k)", lambda s: -s.r * (s.d_in - s.d_in // s.k)),
    Method("two-subspace", "0", lambda s: 0),
    Method("controls/two-subspace-normalized", "0", lambda s: 0),
    Method("controls/two-subspace-hadamard", "0", lambda s: 0),
    Method("kronecker", "k²", lambda s: s.k**2),
    Method("moslora", "r²", lambda s: s.r**2),
    Method("controls/moslora-frozen", "0", lambda s: 0),
    Method("controls/moslora-folded", "0", lambda s: 0),
    Method("controls/lora-scaled", "0", lambda s: 0),
    Method("flora", "r²", lambda s: s.r**2),
    Method("lora-xs", "r² − r · (d_in + d_out)", lambda s: s.r**2 - s.r * (s.d_in + s.d_out)),
    Method("lora-fa", "−r · d_in", lambda s: -s.r * s.d_in),
    Method("adalora", "r₀ + (r₀ − r) · (d_in + d_out)", lambda s: s.own_r + (s.own_r - s.r) * (s.d_in + s.d_out)),
    Method("rslora", "0", lambda s: 0),
    Method("lora-plus", "0", lambda s: 0),
    Method("pissa", "0", lambda s: 0),
    Method("dora", "d_out", lambda s: s.d_out),
)
"""In the order of docs/methods.md, which derives the formulas."""


@dataclass(frozen=True)
class Settings:
    """How much is measured for one method.

    Attributes:
        base: the recipe with the model.
        steps: of the run whose memory is measured; it is stopped after half of them, and resumed.
        pairs: timed steps of the method, each paired with one of LoRA.
        rows: of a step.
        questions: scored per task.
    """

    base: str
    steps: int
    pairs: int
    rows: int
    questions: int


WARMUP = 2
"""Steps of both that are not timed."""

TASKS = ("arc_easy", "obqa")
"""Two, so that a task gate has tasks to distinguish."""


def recipe_text(method: str, settings: Settings, *, steps: int) -> str:
    """The recipe of one method with the base, shortened."""
    sections = {
        "extends": [settings.base, f"methods/{method}"],
        "name": method.replace("/", "-"),
        "data": {"tasks": list(TASKS), "rows": settings.rows * steps, "validation_rows": 0},
        "training": {
            "epochs": None,
            "max_steps": steps,
            "global_batch_size": settings.rows,
            "warmup_steps": 1,
            "log_every": 1,
            "checkpoint_every": steps // 2,
        },
        "evaluation": {"tasks": list(TASKS), "limit": settings.questions},
    }
    return json.dumps(sections)  # JSON is YAML


def examine(method: Method, folder: Path, settings: Settings) -> dict[str, Any]:
    """Everything measured of the run in ``folder/run``."""
    run = folder / "run"
    resumed = folder / "resumed"
    recipe = load_recipe(run / "recipe.yaml")
    section = recipe.adapter
    base = load_recipe(settings.base).adapter
    assert isinstance(section, AdapterSection)
    assert isinstance(base, AdapterSection)
    found = {
        "mixer": section.mixer.kind,
        "dropout": section.dropout,
        "parameters": parameters(method, recipe, rank=base.rank),
        "seconds": times(method, folder, settings),
        "resumed_difference": resume(run, resumed, step=settings.steps // 2),
        "questions": reload_and_evaluate(resumed),
        "becomes": {
            "merge": becomes(merge, run, folder / "merged"),
            "export": becomes(export_peft, run, folder / "exported"),
        },
    }
    shutil.rmtree(resumed)
    return found


def times(method: Method, folder: Path, settings: Settings) -> tuple[list[float], list[float]]:
    """Seconds of LoRA's steps and of the method's, measured in turns."""
    accelerator = Accelerator(mixed_precision="no")
    steppers = []
    for number, name in enumerate(("lora", method.recipe)):
        file = folder / f"timed-{number}.yaml"
        file.write_text(recipe_text(name, settings, steps=WARMUP + settings.pairs), encoding="utf-8")
        steppers.append(Stepper(load_recipe(file), accelerator))
    return alternate(steppers[0].step, steppers[1].step, repetitions=settings.pairs, warmup=WARMUP)


def resume(run: Path, out: Path, *, step: int) -> float:
    """Resumes in ``out`` from a checkpoint of ``run``, as after a crash.

    Returns:
        The largest difference between the two runs' adapters.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    for name in (RECIPE, RUN, METRICS):
        shutil.copy(run / name, out / name)
    shutil.copytree(Run(run).checkpoint(step), Run(out).checkpoint(step))
    train_recipe(load_recipe(out / "recipe.yaml"), out=out, resuming=True)
    ours = load_file(out / "adapter" / "adapter.safetensors")
    whole = load_file(run / "adapter" / "adapter.safetensors")
    if ours.keys() != whole.keys():
        raise RuntimeError("the resumed run has different weights from the uninterrupted one")
    return max(float((ours[key] - whole[key]).abs().max()) for key in whole)


def reload_and_evaluate(run: Path) -> dict[str, int]:
    """The number of questions scored by task, in float32, which does not need whole blocks."""
    results, _ = evaluate_target(open_target(str(run), dtype="float32"))
    for prediction in results.predictions:
        if not torch.tensor(prediction.scores).isfinite().all():
            raise RuntimeError("a score is not finite")
    return {task: score.n for task, score in results.tasks.items()}


def parameters(method: Method, recipe: Recipe, *, rank: int) -> dict[str, int]:
    """LoRA's trainable parameters, of ``rank`` r, by r · (d_in + d_out), what the formula adds, and the number counted.

    Raises:
        RuntimeError: the formula is wrong.
    """
    model = adapt(meta_model(recipe.model), recipe)
    section = recipe.adapter
    assert isinstance(section, AdapterSection)
    blocks = getattr(section.mixer, "blocks", 1)
    lora = 0
    added = 0
    for _, layer in named_adapters(model):
        sizes = Sizes(
            d_in=layer.in_features,
            d_out=layer.out_features,
            r=rank,
            own_r=section.rank,
            k=getattr(section.mixer, "experts", blocks),
            d_e=getattr(section.mixer, "embedding_size", 0),
            t=len(recipe.data.tasks),
        )
        lora += rank * (sizes.d_in + sizes.d_out)
        added += method.added(sizes)
    counted = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    if lora + added != counted:
        raise RuntimeError(f"{method.recipe}: {lora:,} + {added:,} by the formula, {counted:,} counted")
    return {"lora": lora, "added": added, "counted": counted}


class Stepper:
    """A method's training, one step at a time, by the training loop itself."""

    def __init__(self, recipe: Recipe, accelerator: Accelerator) -> None:
        self.parts, _ = prepare(accelerator, recipe)
        self.done = 0

    def step(self) -> None:
        """Runs the next step: a run that is told to stop after it."""
        self.done = train(
            self.parts,
            first_step=self.done,
            report=lambda step, **values: None,
            checkpoint=lambda step: None,
            validate=lambda step: False,
            stop_requested=lambda: True,
        )


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


def main() -> None:
    name, folder, settings = sys.argv[1:]
    by_name = {method.recipe: method for method in METHODS}
    found = examine(by_name[name], Path(folder), Settings(**json.loads(settings)))
    (Path(folder) / "examined.json").write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
