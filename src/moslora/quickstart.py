"""Train, evaluate before and after, and merge, in one command."""

import shlex
import time
from pathlib import Path

from moslora.choices import DType
from moslora.compare.arms import Arm
from moslora.compare.comparison import compare_arms
from moslora.compare.conclusion import lines, tables
from moslora.compare.runs import ComparedRun
from moslora.console import say
from moslora.convert.merge import merge
from moslora.errors import UsageError, stopped
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.target import open_target
from moslora.files import in_use, refuse_used
from moslora.processes.devices import device, gpus, multiplies_bfloat16
from moslora.recipe import load_recipe
from moslora.runs.evaluation import Evaluation
from moslora.runs.run import Run
from moslora.training.launch import train_in_processes, worker_processes

RECIPE = "smollm2-135m"


@stopped("stopped: the work so far is saved, and the same command continues from there")
def quickstart(*, out: Path) -> tuple[list[list[str]], list[str]]:
    """Runs all steps in the folder ``out``, or those that are left there.

    Returns:
        The table, header first, and the lines below it: the conclusion, and what to try next.
    """
    began = time.monotonic()
    run = Run(out)
    _train(run)
    base = _scored(out, "base")
    tuned = _scored(out, "tuned")
    merged = out / "merged"
    if not in_use(merged):  # ignores the lock file of a killed merge
        say(f"merging into {merged} ...")
        say(str(merge(run.result, out=merged)))
    minutes = (time.monotonic() - began) / 60
    say(f"done in {minutes:.1f} minutes")
    found = compare_arms([base, tuned])
    table = tables(found)[-1]
    return table, [*lines(found), *_try_next(out)]


def _train(run: Run) -> None:
    """Trains the run, or continues it; says so first, and how long it takes."""
    if run.exists:
        recipe = run.recipe_to_resume()
        if recipe.name != load_recipe(RECIPE).name:
            raise UsageError(f"{run.path}: holds a run of recipe {recipe.name}; choose another folder with --out")
        say(f"continuing {run.path} (remove that folder to start again)")
        words = [str(run.path), "--resume"]
    else:
        refuse_used(run.path)
        recipe = load_recipe(RECIPE)
        dtype = fast_dtype()
        if not gpus():
            # On an AMD EPYC; in float32 a step takes as long there with AVX2 alone.
            minutes = 4 if dtype == "bfloat16" else 9
            say(f"about {minutes} minutes on two cores, in {dtype}")
        words = [RECIPE, f"model.dtype={dtype}"]
    if not run.result.exists():
        train_in_processes(words, out=run.path, processes=worker_processes(recipe.training))


def _scored(out: Path, name: str) -> Arm:
    """The answers of the run in ``out``, called ``tuned``, or those of its ``base``, as an arm of this name."""
    say(f"scoring the {name} model ...")
    target = open_target(str(out), base=name == "base")
    results, folder = evaluate_target(target)
    evaluation = Evaluation.of(folder, results.settings, results.predictions).in_order
    return Arm(name, {None: ComparedRun(evaluation, folder)})


def _try_next(out: Path) -> list[str]:
    quoted = shlex.quote(str(out))
    return [
        "try next:",
        f"  moslora ask {quoted}    # ask your own question",
        f"  moslora compare {quoted} --outcome log_probability    # how sure it is of the right options",
        f"  moslora eval {quoted} --limit all    # every test question",
        "  moslora train llama3-8b --dry-run    # what a run of LLaMA-3-8B would train",
    ]


def fast_dtype() -> DType:
    """The fastest dtype that trains well here: bfloat16 only if the hardware multiplies it."""
    if multiplies_bfloat16(device()):
        return "bfloat16"
    if gpus():
        return "float16"
    return "float32"
