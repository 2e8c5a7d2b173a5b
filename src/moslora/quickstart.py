"""Train, evaluate before and after, and merge, in one command."""

import math
import os
import shlex
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from moslora.choices import DType
from moslora.console import say
from moslora.convert.merge import merge
from moslora.errors import MosloraError, UsageError, stopped
from moslora.evaluation import PairedDifference, Prediction, Score, paired_difference
from moslora.evaluation.predictions import percent
from moslora.evaluation.results import Results
from moslora.evaluation.target import evaluate_target, open_target
from moslora.files import in_use, refuse_used
from moslora.recipe import load_recipe
from moslora.runs.adapter_folder import stored_recipe
from moslora.runs.find import RESULT, locate_adapter
from moslora.runs.manifest import RECIPE as STORED
from moslora.training.launch import run_in_processes

RECIPE = "smollm2-135m"


@stopped("stopped; the work so far is saved, and the same command continues from there")
def quickstart(*, out: Path) -> tuple[list[list[str]], list[str]]:
    """Runs all steps, or those that are left, in the folder ``out``.

    Returns:
        The table (header first), and the lines below it: the verdict, and what to try next.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; training saved first.
        UsageError: ``out`` holds something else.
    """
    began = time.monotonic()
    if (out / STORED).exists():
        if (name := stored_recipe(out).name) != load_recipe(RECIPE).name:
            raise UsageError(f"{out}: holds a run of recipe {name}; choose another folder with --out")
        say(f"continuing {out} (remove that folder to start again)")
        training = [str(out), "--resume"]
    else:
        refuse_used(out)
        training = [RECIPE, f"model.dtype={fast_dtype()}", "--out", str(out)]
    if not (out / RESULT).exists():
        _train(training)
    results = []
    for base in (True, False):
        say(f"scoring the {'base' if base else 'tuned'} model ...")
        results.append(evaluate_target(open_target(str(out), base=base))[0])
    if not in_use(out / "merged"):  # ignores the lock file of a killed merge
        say(f"merging into {out / 'merged'} ...")
        say(str(merge(locate_adapter(out), out=out / "merged")))
    say(f"done in {(time.monotonic() - began) / 60:.1f} minutes")
    return comparison(*results), [*verdict(*results), *_next(out)]


def fast_dtype() -> DType:
    """The fastest dtype that trains well here: bfloat16 only if the hardware multiplies it."""
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    units = torch.cpu.get_capabilities()
    return "bfloat16" if units.get("amx_bf16") or units.get("avx512_bf16") else "float32"


def _train(arguments: Sequence[str]) -> None:
    """Trains in a subprocess; without a GPU, in several: two processes are a third faster than two threads."""
    processes = worker_processes()
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))}
    if not torch.cuda.is_available():
        environment["ACCELERATE_USE_CPU"] = "true"
    command = [sys.executable, "-m", "moslora", "train", *arguments]
    if code := run_in_processes(command, processes=processes, environment=environment):
        fault = UsageError if code == UsageError.exit_code else MosloraError
        raise fault(f"training ended with exit code {code}; the lines above say why")


def worker_processes() -> int:
    """One on a GPU, otherwise one per core, at most four."""
    return 1 if torch.cuda.is_available() else min(4, os.cpu_count() or 1)


def _next(out: Path) -> list[str]:
    run = shlex.quote(str(out))
    return [
        "try next:",
        f"  moslora ask {run}    # ask your own question",
        f"  moslora eval {run} --limit all    # every test question",
        "  moslora train llama3-8b --dry-run    # what a run of LLaMA-3-8B would train",
    ]


def comparison(base: Results, tuned: Results) -> list[list[str]]:
    """A row per task: size, majority class, base, tuned, their paired difference, and log p of the right option."""
    metric = base.settings.primary
    paired = paired_difference(base.predictions, tuned.predictions, metric=metric)

    def row(task: str, before: Score, after: Score, pair: PairedDifference) -> list[str]:
        return [
            task,
            f"{before.n:,}",
            percent(before.majority_class),
            percent(getattr(before, metric)),
            percent(getattr(after, metric)),
            f"{100 * pair.difference:+.1f} ± {100 * _error(pair):.1f}",
            f"{before.log_probability:.3f}",
            f"{after.log_probability:.3f}",
        ]

    return [
        ["task", "n", "majority", "base", "tuned", "difference ± s.e.", "log p base", "log p tuned"],
        *(row(task, base.tasks[task], tuned.tasks[task], paired[task]) for task in base.tasks),
        row("average", base.macro, tuned.macro, paired["macro"]),
    ]


def verdict(base: Results, tuned: Results) -> list[str]:
    """The result in words."""
    metric = base.settings.primary
    gain = paired_difference(base.predictions, tuned.predictions, metric=metric)
    over_majority = paired_difference(majority(base.predictions), tuned.predictions, metric=metric)
    better = paired_difference(base.predictions, tuned.predictions, metric="log_probability")["macro"]
    lines = []
    for name, pair in (("the base model", gain["macro"]), ("the majority class", over_majority["macro"])):
        above = "above" if pair.difference > 2 * _error(pair) else "NOT above"
        lines.append(
            f"average {100 * pair.difference:+.1f} points against {name}: {above} two standard errors"
            f" ({200 * _error(pair):.1f})"
        )
    higher = "higher" if better.difference > 0 else "NOT higher"
    lines.append(f"log-probability of the right option {better.difference:+.3f} nats: {higher} than the base model's")
    if still := [task for task in base.tasks if abs(gain[task].difference) <= 2 * _error(gain[task])]:
        lines.append(f"within two standard errors of no change: {', '.join(still)}")
    return lines


def _error(pair: PairedDifference) -> float:
    """The standard error; infinite for a single question."""
    return math.inf if pair.standard_error is None else pair.standard_error


def majority(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Predictions that always choose the most frequent right position of the task."""
    golds: dict[str, Counter[int]] = defaultdict(Counter)
    for p in predictions:
        golds[p.task][p.gold] += 1
    constant = []
    for p in predictions:
        ((best, _),) = golds[p.task].most_common(1)
        scores = tuple(float(i == best) for i in range(max(len(p.scores), best + 1)))
        constant.append(replace(p, prediction=best, scores=scores, characters=(1,) * len(scores)))
    return constant
