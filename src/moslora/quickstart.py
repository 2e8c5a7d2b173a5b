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
from moslora.evaluation.target import evaluate_target, open_target
from moslora.files import in_use, refuse_used
from moslora.processes.devices import device, gpus, multiplies_bfloat16
from moslora.recipe import load_recipe
from moslora.runs.evaluation import Evaluation
from moslora.runs.run import Run
from moslora.training.launch import train_in_processes, worker_processes

RECIPE = "smollm2-135m"


@stopped("stopped: the work so far is saved, and the same command continues from there")
def quickstart(*, out: Path) -> tuple[list[list[str]], list[str]]:
    """Runs all steps, or those that are left, in the folder ``out``. Returns the table (header first), and the lines
    below it: the conclusion, and what to try next."""
    began = time.monotonic()
    run = Run(out)
    if run.exists:
        if (name := run.recipe_to_resume().name) != load_recipe(RECIPE).name:
            raise UsageError(f"{out}: holds a run of recipe {name}; choose another folder with --out")
        say(f"continuing {out} (remove that folder to start again)")
        training = [str(out), "--resume"]
    else:
        refuse_used(out)
        dtype = fast_dtype()
        if not gpus():  # on an AMD EPYC; in float32 a step takes as long there with AVX2 alone
            say(f"about {4 if dtype == 'bfloat16' else 9} minutes on two cores, in {dtype}")
        training = [RECIPE, f"model.dtype={dtype}"]
    if not run.result.exists():
        section = (run.recipe_to_resume() if run.exists else load_recipe(RECIPE)).training
        train_in_processes(training, out=out, processes=worker_processes(section))
    arms = []
    for name in ("base", "tuned"):
        say(f"scoring the {name} model ...")
        results, folder = evaluate_target(open_target(str(out), base=name == "base"))
        evaluation = Evaluation.of(folder, results.settings, results.predictions).in_order
        arms.append(Arm(name, {None: ComparedRun(evaluation, folder)}))
    if not in_use(out / "merged"):  # ignores the lock file of a killed merge
        say(f"merging into {out / 'merged'} ...")
        say(str(merge(run.result, out=out / "merged")))
    say(f"done in {(time.monotonic() - began) / 60:.1f} minutes")
    found = compare_arms(arms)
    quoted = shlex.quote(str(out))
    return tables(found)[-1], [
        *lines(found),
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
    return "float16" if gpus() else "float32"
