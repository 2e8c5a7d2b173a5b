"""Trains a finished run again, and says how far what came out is off."""

import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from moslora.base.adapted import adapter_state
from moslora.base.load import read_base
from moslora.console import say
from moslora.errors import MosloraError
from moslora.files import write_text
from moslora.processes.devices import gpus
from moslora.recipe import Recipe
from moslora.runs.adapter_folder import open_adapter
from moslora.runs.continued import read_continued
from moslora.runs.manifest import RECIPE, TRUST
from moslora.runs.origin import predecessor_of
from moslora.runs.run import Run
from moslora.training.launch import train_in_processes
from moslora.training.prepare import adapt, gather_inputs

TOLERANCE = 0.05
"""Largest ‖θ′ − θ‖ / ‖θ − θ₀‖ that other hardware or versions may cause by rounding; θ are all weights of the adapter,
θ₀ those at its start. Ten times the largest that was measured: docs/comparing.md has the reruns."""


def reproduce(run: Run, *, out: Path, trust_remote_code: bool = False) -> str:
    """Trains ``run`` again in ``out``, with as many processes and threads, and says how far its weights are off.
    `moslora.runs.resuming.refuse_reproduction` has seen that it can be.
    ``trust_remote_code``: the base's own Python code may run, which a run's recipe cannot allow.

    Raises:
        MosloraError: the rows are others, training failed, or the weights differ by more than :data:`TOLERANCE`.
    """
    trusted = [f"{TRUST}=true"] if trust_remote_code else []
    recipe = run.recipe_to_resume(trusted)
    facts = run.facts
    read_continued(recipe, begun_with=predecessor_of(facts))  # which refuses other weights
    data = gather_inputs(recipe).data
    then = facts.get("data", {})
    if any(key in then and then[key] != getattr(data, key) for key in ("sha256", "tokens_sha256")):
        raise MosloraError("not reproduced: the training rows, or the tokens of them, differ from the run's")
    if not Run(out).exists:
        write_text(out / RECIPE, (run.path / RECIPE).read_text(encoding="utf-8"))
    threads = facts.get("hardware", {}).get("threads")
    # In a process of its own: a process's threads are set when it starts.
    environment = {"OMP_NUM_THREADS": str(threads or os.cpu_count())}
    if threads or not gpus():
        environment["ACCELERATE_USE_CPU"] = "true"
    say(f"training again in {out}")
    again = [str(out), "--resume", *trusted]
    train_in_processes(again, out=out, processes=facts.get("processes", 1), environment=environment)
    return verdict(run, Run(out), start=start_of(recipe))


def start_of(recipe: Recipe) -> dict[str, Tensor]:
    """The adapter's weights before the first step: drawn from the recipe's seed, and where its start says so made of
    the base's; or those of the adapter that it continues."""
    return adapter_state(adapt(read_base(recipe.model), recipe, start=read_continued(recipe)))


def verdict(run: Run, again: Run, *, start: Mapping[str, Tensor]) -> str:
    """A line that says how far apart the adapters of the finished runs are, which started as ``start``; fails beyond
    :data:`TOLERANCE`."""
    before = open_adapter(run.result).weights()
    after = open_adapter(again.result).weights()
    distance = relative_distance(before, after, start=start)
    if distance == 0:
        return f"bitwise equal: all {len(before)} tensors of {again.result} are those of {run.result}"
    line = f"the weights of {again.result} differ by {distance:.2g} of what training changed"
    if distance > TOLERANCE:
        raise MosloraError(f"not reproduced: {line}")
    return f"not bitwise equal, but within the tolerance of {TOLERANCE:g}: {line}"


def relative_distance(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], *, start: Mapping[str, Tensor]
) -> float:
    """‖θ′ − θ‖ / ‖θ − θ₀‖ over all tensors; infinite if they are not the same ones, or nothing changed. Not of ‖θ‖,
    which is mostly A's start."""
    if not before.keys() == after.keys() == start.keys():
        return math.inf
    then, now, first = (torch.cat([each[key].double().flatten() for key in before]) for each in (before, after, start))
    if then.shape != now.shape or torch.equal(then, first):
        return math.inf
    return float((now - then).norm() / (then - first).norm())
