"""Train, evaluate before and after, and merge, in one command, at a size that suits the machine."""

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
"""Name -> 1 / this of the recipe's training rows; and the questions of each of the eight sets. The largest first."""

VALIDATION_ROWS = 120
"""Of every size."""

SECONDS_TO_CHOOSE = 280
"""Most seconds, by the estimate, of the size that is chosen: five minutes, with a fifteenth to spare."""

SECONDS_BESIDE = 30.0
"""Loading the model four times, starting processes, the merge and its proof."""

# Work, in tokens that take the time of one that the measurement trains: estimates from the CPU seconds of one thread,
# SmolLM2-135M in float32 on an AMD EPYC; docs/speed.md has what was announced and taken.
TRAINED = 51_000  # of the full size's rows: a process per core takes 0.78 of the one process's time for a token
VALIDATED = 3_500
ASKED = 390  # of one question of each of the eight sets, asked of the base and of the tuned model


def overrides(size: SizeName, recipe: Recipe) -> list[str]:
    """What a size changes in ``recipe``, which has numbers of rows by task."""
    part, questions = SIZES[size]
    rows = recipe.data.rows
    if part == 1 or not isinstance(rows, dict):
        return []
    changed = [f"data.rows.{task}={round(number / part)}" for task, number in rows.items()]
    return [*changed, f"evaluation.limit={questions}"]


def seconds(size: SizeName, speed: float) -> float:
    """An estimate of the time of the whole quickstart where ``speed`` tokens a second are trained."""
    part, questions = SIZES[size]
    return SECONDS_BESIDE + (TRAINED / part + VALIDATED + ASKED * questions) / speed


@on_interrupt("stopped: the work so far is saved, and the same command continues from there")
def quickstart(*, out: Path, size: SizeName | None = None) -> tuple[list[list[str]], list[str]]:
    """Runs all steps in the folder ``out``, or those that are left there.

    Args:
        out: the run's folder.
        size: of a new run; ``None`` for the largest that this machine takes in five minutes. A run that goes on keeps
            its own.

    Returns:
        The table, header first, and the lines below it: the conclusion, and what to try next.
    """
    began = time.monotonic()
    run = Run(out)
    _train(run, size)
    base = _scored(out, "base")
    tuned = _scored(out, "tuned")
    merged = out / "merged"
    if not in_use(merged):  # ignores the lock file of a killed merge
        say(f"merging into {merged} ...")
        say(str(merge(run.result, out=merged)))
    minutes = (time.monotonic() - began) / 60
    say(f"done in {minutes:.1f} minutes")
    shown = compare_arms([base, tuned], outcome="accuracy")
    surer = compare_arms([base, tuned], outcome="log_probability")
    quoted = shlex.quote(str(out))
    return tables(shown)[-1], [
        *lines(shown),
        *conclusions(surer),
        "try next:",
        f"  moslora ask {quoted}    # ask your own question",
        f"  moslora compare {quoted} --outcome log_probability    # how sure it is of the right options",
        f"  moslora eval {quoted} --limit all    # every test question",
        "  moslora train llama3-8b --dry-run    # the plan of a run of LLaMA-3-8B",
    ]


def _train(run: Run, size: SizeName | None) -> None:
    """Trains the run, or continues it; says so first, and how long it takes."""
    if run.exists:
        recipe = run.recipe_to_resume()
        if recipe.name != load_recipe(RECIPE).name:
            raise UsageError(f"{run.path}: holds a run of recipe {recipe.name}; choose another folder with --out")
        say(f"continuing {run.path} at its own size (remove that folder to start again)")
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


def _choose_size(typed: SizeName | None, recipe: Recipe) -> SizeName:
    """The size that was typed, or else the full one on a GPU, and on a CPU the largest that takes five minutes, or the
    smallest. Says how long it takes."""
    if gpus():
        return typed or "full"
    say("measuring this machine ...")
    speed = probe(recipe, count=1)
    free_memory()
    fitting = [size for size in SIZES if seconds(size, speed) <= SECONDS_TO_CHOOSE]
    size = typed or [*fitting, "third"][0]
    minutes = seconds(size, speed) / 60
    measured = f"it trains {speed:,.0f} tokens a second in {recipe.model.dtype}"
    say(f"{measured}, so size {size} takes about {minutes:.1f} minutes")
    if size != "full":
        _, questions = SIZES["full"]
        minutes = seconds("full", speed) / 60
        say(f"(all rows and {questions} questions of each set: --size full, about {minutes:.0f} minutes)")
    return size


def _scored(out: Path, name: str) -> Arm:
    """The answers of the run in ``out``, called ``tuned``, or those of its ``base``, as an arm of this name."""
    say(f"scoring the {name} model ...")
    target = open_target(str(out), base=name == "base")
    results, folder = evaluate_target(target)
    evaluation = Evaluation.of(folder, results.conditions, results.predictions)
    return Arm(name, {None: ComparedRun.of(evaluation)})


def fast_dtype() -> DType:
    """The fastest dtype that trains well here: bfloat16 only if the hardware multiplies it."""
    if multiplies_bfloat16(device()):
        return "bfloat16"
    if gpus():
        return "float16"
    return "float32"
