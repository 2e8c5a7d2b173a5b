"""Training of a finished run again, and the distance between the two adapters.

Which runs can be trained again is in `moslora.runs.resuming`.
"""

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
"""Largest ‖θ′ − θ‖ / ‖θ − θ₀‖ that counts as rounding of other hardware or versions. θ are the adapter's weights, θ₀
those at its start. It is ten times the largest measured distance (docs/comparing.md)."""


def reproduce(run: Run, *, out: Path, trust_remote_code: bool = False) -> str:
    """Train ``run`` again with as many processes and threads, and return a line on how far the weights are apart.

    Args:
        run: finished run that `moslora.runs.resuming.refuse_reproduction` accepts.
        out: folder of the new run.
        trust_remote_code: whether the base's own Python code may run, which a stored recipe cannot allow.

    Raises:
        MosloraError: the rows differ, training failed, or the weights differ by more than `TOLERANCE`.
    """
    trusted = [f"{TRUST}=true"] if trust_remote_code else []
    recipe = run.recipe_to_resume(trusted)
    facts = run.facts
    read_continued(recipe, begun_with=predecessor_of(facts))  # refuses other weights
    data = gather_inputs(recipe).data
    recorded = facts.get("data", {})
    if any(key in recorded and recorded[key] != getattr(data, key) for key in ("sha256", "tokens_sha256")):
        raise MosloraError("not reproduced: the training rows, or their tokens, differ from the run's")
    if not Run(out).exists:
        write_text(out / RECIPE, (run.path / RECIPE).read_text(encoding="utf-8"))
    threads = facts.get("hardware", {}).get("threads")
    # The number of threads is set when a process starts.
    environment = {"OMP_NUM_THREADS": str(threads or os.cpu_count())}
    if threads or not gpus():
        environment["ACCELERATE_USE_CPU"] = "true"
    say(f"training again in {out}")
    arguments = [str(out), "--resume", *trusted]
    train_in_processes(arguments, out=out, processes=facts.get("processes", 1), environment=environment)
    return verdict(run, Run(out), start=start_of(recipe))


def start_of(recipe: Recipe) -> dict[str, Tensor]:
    """Return the adapter's weights before the first step: drawn by the seed, made from the base, or continued."""
    return adapter_state(adapt(read_base(recipe.model), recipe, start=read_continued(recipe)))


def verdict(run: Run, again: Run, *, start: Mapping[str, Tensor]) -> str:
    """Return a line on how far the adapters of two finished runs are apart.

    Args:
        run: first run.
        again: second run.
        start: weights of both before their first step.

    Raises:
        MosloraError: the distance is above `TOLERANCE`.
    """
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
    """Return ‖θ′ − θ‖ / ‖θ − θ₀‖ over all tensors; infinite if their names or sizes differ, or θ is θ₀.

    ‖θ‖ as the unit would hide differences, as A's start makes up most of it.

    Args:
        before: θ.
        after: θ′.
        start: θ₀.
    """
    if not before.keys() == after.keys() == start.keys():
        return math.inf
    theta, theta_again, theta_start = (
        torch.cat([weights[key].double().flatten() for key in before]) for weights in (before, after, start)
    )
    if theta.shape != theta_again.shape or torch.equal(theta, theta_start):
        return math.inf
    return float((theta_again - theta).norm() / (theta - theta_start).norm())
