"""Train, evaluate before and after, and merge, in one command."""

import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moslora.choices import DType, SizeName
from moslora.compare.arms import Arm
from moslora.compare.comparison import compare_arms
from moslora.compare.conclusion import lines
from moslora.compare.display import tables
from moslora.console import say
from moslora.convert.merge import merge
from moslora.errors import UsageError, stopped
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.target import open_target
from moslora.files import in_use, refuse_used
from moslora.processes.devices import device, gpus, multiplies_bfloat16
from moslora.recipe import Recipe, load_recipe
from moslora.runs.evaluation import Evaluation
from moslora.runs.outcomes import OutcomeName
from moslora.runs.run import Run
from moslora.training.launch import train_in_processes, worker_processes

RECIPE = "smollm2-135m"


@dataclass(frozen=True)
class Size:
    """How much of the recipe a quickstart takes.

    Attributes:
        name: as typed.
        part: 1 / this of the recipe's training rows.
        questions: of each of the eight sets.
        outcome: what the conclusion is about; few questions show a gain by log-probability, and not by accuracy.
    """

    name: SizeName
    part: int
    questions: int
    outcome: OutcomeName

    def overrides(self, recipe: Recipe) -> list[str]:
        """What it changes in ``recipe``, which has numbers of rows by task."""
        rows = recipe.data.rows
        if self.part == 1 or not isinstance(rows, dict):
            return []
        changed = [f"data.rows.{task}={round(number / self.part)}" for task, number in rows.items()]
        return [*changed, f"evaluation.limit={self.questions}"]


SIZES: Mapping[SizeName, Size] = {
    size.name: size
    for size in (
        Size("full", 1, 256, "accuracy"),
        Size("half", 2, 128, "log_probability"),
        Size("third", 3, 64, "log_probability"),
    )
}


def size_of(recipe: Recipe) -> Size:
    """The size of a run with this ``recipe``, told by its number of questions; the full one for any other number."""
    for size in SIZES.values():
        if size.questions == recipe.evaluation.limit:
            return size
    return SIZES["full"]


@stopped("stopped: the work so far is saved, and the same command continues from there")
def quickstart(*, out: Path, size: SizeName = "full") -> tuple[list[list[str]], list[str]]:
    """Runs all steps in the folder ``out``, or those that are left there.

    Args:
        out: the run's folder.
        size: of a new run; one that goes on keeps its own.

    Returns:
        The table, header first, and the lines below it: the conclusion, and what to try next.
    """
    began = time.monotonic()
    run = Run(out)
    recipe = _train(run, size)
    base = _scored(out, "base")
    tuned = _scored(out, "tuned")
    merged = out / "merged"
    if not in_use(merged):  # ignores the lock file of a killed merge
        say(f"merging into {merged} ...")
        say(str(merge(run.result, out=merged)))
    minutes = (time.monotonic() - began) / 60
    say(f"done in {minutes:.1f} minutes")
    shown = compare_arms([base, tuned], outcome="accuracy")
    concluded = shown
    outcome = size_of(recipe).outcome
    about: list[str] = []
    if outcome != "accuracy":
        concluded = compare_arms([base, tuned], outcome=outcome)
        about = ["above: accuracy in percent; below: log p of the right option, in which fewer questions show a gain"]
    return tables(shown)[-1], [*about, *lines(concluded), *_try_next(out, outcome)]


def _train(run: Run, size: SizeName) -> Recipe:
    """Trains the run, or continues it, and returns its recipe."""
    if run.exists:
        recipe = run.recipe_to_resume()
        if recipe.name != load_recipe(RECIPE).name:
            raise UsageError(f"{run.path}: holds a run of recipe {recipe.name}; choose another folder with --out")
        say(f"continuing {run.path} at its own size (remove that folder to start again)")
        words = [str(run.path), "--resume"]
    else:
        refuse_used(run.path)
        dtype = f"model.dtype={fast_dtype()}"
        changes = SIZES[size].overrides(load_recipe(RECIPE, [dtype]))
        words = [RECIPE, dtype, *changes]
        recipe = load_recipe(RECIPE, [dtype, *changes])
    if not run.result.exists():
        train_in_processes(words, out=run.path, processes=worker_processes(recipe.training))
    return recipe


def _scored(out: Path, name: str) -> Arm:
    """The answers of the run in ``out``, called ``tuned``, or those of its ``base``, as an arm of this name."""
    say(f"scoring the {name} model ...")
    target = open_target(str(out), base=name == "base")
    results, folder = evaluate_target(target)
    evaluation = Evaluation.of(folder, results.settings, results.predictions).in_order
    return Arm(name, {None: evaluation})


def _try_next(out: Path, outcome: OutcomeName) -> list[str]:
    quoted = shlex.quote(str(out))
    other = f"  moslora compare {quoted} --outcome log_probability    # how sure it is of the right options"
    if outcome == "log_probability":
        other = f"  moslora compare {quoted} --outcome accuracy    # the gain in accuracy"
    return [
        "try next:",
        f"  moslora ask {quoted}    # ask your own question",
        other,
        f"  moslora eval {quoted} --limit all    # every test question",
        "  moslora train llama3-8b --dry-run    # the plan of a run of LLaMA-3-8B",
    ]


def fast_dtype() -> DType:
    """The fastest dtype that trains well here: bfloat16 only if the hardware multiplies it."""
    if multiplies_bfloat16(device()):
        return "bfloat16"
    if gpus():
        return "float16"
    return "float32"
