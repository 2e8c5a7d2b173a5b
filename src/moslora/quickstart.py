"""The command `quickstart`: train, evaluate before and after, and merge, at a size that suits the machine."""

import shlex
import time
from collections.abc import Mapping
from pathlib import Path

from moslora.choices import DType, SizeName
from moslora.compare.arms import Arm
from moslora.compare.compared_run import ComparedRun
from moslora.compare.comparison import compare_arms
from moslora.compare.conclusion import conclusions, lines
from moslora.compare.display import tables
from moslora.console import say
from moslora.convert.merge import merge
from moslora.errors import UsageError, on_interrupt
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.target import open_target
from moslora.files import in_use, refuse_used
from moslora.plan.duration import probe
from moslora.processes.devices import device, free_memory, gpus, multiplies_bfloat16
from moslora.recipe import Recipe, load_recipe
from moslora.runs.evaluation import Evaluation
from moslora.runs.run import Run
from moslora.training.launch import train_in_processes, worker_processes

RECIPE = "smollm2-135m"

SIZES: Mapping[SizeName, tuple[int, int]] = {"full": (1, 256), "half": (2, 128), "third": (3, 64)}
"""Sizes, the largest first: the number by which the recipe's training rows are divided, and questions per set."""

VALIDATION_ROWS = 120
"""Number of validation rows, for every size."""

SECONDS_TO_CHOOSE = 280
"""Maximum estimated seconds of the size that is chosen by itself: five minutes less a fifteenth."""

FIXED_SECONDS = 30.0
"""Seconds of the steps that no size changes: loading the model four times, starting processes, the merge, its proof."""

# Work in tokens of training: estimates from the CPU seconds of one thread, SmolLM2-135M in float32 on an AMD EPYC.
# docs/speed.md compares estimated and measured times.
TRAINING_TOKENS = 51_000  # of the full size; a process per core takes 0.78 of the one process's time for a token
VALIDATION_TOKENS = 3_500
TOKENS_PER_QUESTION = 390  # one question of each of the eight sets, asked of the base and of the tuned model


def overrides(size: SizeName, recipe: Recipe) -> list[str]:
    """List the overrides by which a size changes ``recipe``; empty for the full size, or if the recipe does not set a
    number of rows for each task."""
    divisor, questions = SIZES[size]
    rows = recipe.data.rows
    if divisor == 1 or not isinstance(rows, dict):
        return []
    limits = [f"data.rows.{task}={round(number / divisor)}" for task, number in rows.items()]
    return [*limits, f"evaluation.limit={questions}"]


def seconds(size: SizeName, speed: float) -> float:
    """Estimate the seconds of the whole quickstart from the ``speed`` of training in tokens per second."""
    divisor, questions = SIZES[size]
    tokens = TRAINING_TOKENS / divisor + VALIDATION_TOKENS + TOKENS_PER_QUESTION * questions
    return FIXED_SECONDS + tokens / speed


@on_interrupt("stopped: the work so far is saved, and the same command continues from there")
def quickstart(*, out: Path, size: SizeName | None = None) -> tuple[list[list[str]], list[str]]:
    """Run all steps in the folder ``out``, or the steps that are missing there.

    Args:
        out: the run's folder.
        size: of a new run; ``None`` for the largest that takes this machine less than five minutes. A run that is
            continued keeps its size.

    Returns:
        The table, header first, and the lines below it: the conclusion, and commands to try next.
    """
    began = time.monotonic()
    run = Run(out)
    _train(run, size)
    base = _scored(out, "base")
    tuned = _scored(out, "tuned")
    merged = out / "merged"
    if not in_use(merged):
        say(f"merging into {merged} ...")
        say(str(merge(run.result, out=merged)))
    minutes = (time.monotonic() - began) / 60
    say(f"done in {minutes:.1f} minutes")
    by_accuracy = compare_arms([base, tuned], outcome="accuracy")
    by_log_probability = compare_arms([base, tuned], outcome="log_probability")
    quoted = shlex.quote(str(out))
    return tables(by_accuracy)[-1], [
        *lines(by_accuracy),
        *conclusions(by_log_probability),
        "try next:",
        f"  moslora ask {quoted}    # ask your own question",
        f"  moslora compare {quoted} --outcome log_probability    # how sure it is of the right options",
        f"  moslora eval {quoted} --limit all    # every test question",
        "  moslora train llama3-8b --dry-run    # the plan of a run of LLaMA-3-8B",
    ]


def _train(run: Run, size: SizeName | None) -> None:
    """Train a new run, or continue an existing one and say so; a run with a result is not trained further."""
    if run.exists:
        recipe = run.recipe_to_resume()
        if recipe.name != load_recipe(RECIPE).name:
            other = f"already has a run of another recipe, {recipe.name}"
            raise UsageError(f"{run.path}: {other}; choose another folder with --out")
        say(f"continuing {run.path} at the --size that it was started with (remove that folder to start again)")
        words = [str(run.path), "--resume"]
    else:
        refuse_used(run.path)
        changes = [f"model.dtype={fast_dtype()}", f"data.validation_rows={VALIDATION_ROWS}"]
        recipe = load_recipe(RECIPE, changes)
        changes += overrides(_choose_size(size, recipe), recipe)
        words = [RECIPE, *changes]
        recipe = load_recipe(RECIPE, changes)
    if not run.result.exists():
        train_in_processes(words, out=run.path, processes=worker_processes(recipe.training))


def _choose_size(size: SizeName | None, recipe: Recipe) -> SizeName:
    """Choose a size if the user gave none: on a GPU the full one, on a CPU the largest that takes less than five
    minutes, or the smallest. On a CPU, print how long it takes."""
    if gpus():
        return size or "full"
    say("measuring this machine ...")
    speed = probe(recipe, count=1)
    free_memory()
    fitting = [size for size in SIZES if seconds(size, speed) <= SECONDS_TO_CHOOSE]
    size = size or [*fitting, "third"][0]
    minutes = seconds(size, speed) / 60
    measured = f"it trains {speed:,.0f} tokens a second in {recipe.model.dtype}"
    say(f"{measured}, so size {size} takes about {minutes:.1f} minutes")
    if size != "full":
        _, questions = SIZES["full"]
        minutes = seconds("full", speed) / 60
        say(f"(all rows and {questions} questions of each set: --size full, about {minutes:.0f} minutes)")
    return size


def _scored(out: Path, name: str) -> Arm:
    """Score the run in ``out`` (``name`` "tuned"), or its base ("base"), as an arm of this name."""
    say(f"scoring the {name} model ...")
    target = open_target(str(out), base=name == "base")
    results, folder = evaluate_target(target)
    evaluation = Evaluation.of(folder, results.conditions, results.predictions)
    return Arm(name, {None: ComparedRun.of(evaluation)})


def fast_dtype() -> DType:
    """Fastest dtype that trains well on this machine: bfloat16 only if the hardware multiplies it."""
    if multiplies_bfloat16(device()):
        return "bfloat16"
    if gpus():
        return "float16"
    return "float32"
