"""Trains a finished run again, and says whether the same came out."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moslora.console import note, say
from moslora.errors import MosloraError
from moslora.files import write_text
from moslora.processes.devices import GPU, gpus
from moslora.recipe import Recipe
from moslora.recipe.recipe import changed_keys
from moslora.runs.adapter_folder import open_adapter
from moslora.runs.manifest import RECIPE
from moslora.runs.resuming import refuse_reproduction
from moslora.runs.run import Run
from moslora.training.launch import train_in_processes
from moslora.training.run_card import git_state, hardware, versions
from moslora.training.tracking import MEASURED

TOLERANCE = 0.01
"""Largest ‖θ′ − θ‖ / ‖θ‖, θ all weights of the adapter, that other hardware or versions may cause by rounding."""


def reproduce(run: Run, *, out: Path, trust_remote_code: bool = False) -> str:
    """Trains ``run`` again in ``out``, with as many processes and threads, and says how equal metrics and weights are.
    ``trust_remote_code``: the base's own Python code may run, which a run's recipe cannot allow.

    Raises:
        MosloraError: training failed, or the weights differ by more than :data:`TOLERANCE`.
    """
    refuse_reproduction(run, out)
    recipe, facts = run.recipe_to_resume(), run.facts
    if not Run(out).exists:
        write_text(out / RECIPE, (run.path / RECIPE).read_text(encoding="utf-8"))
    threads = facts.get("hardware", {}).get("threads")
    on_cpu = bool(threads) or not gpus()
    for line in changes(facts, device="cpu" if on_cpu else GPU, recipe=recipe):
        note(line)
    say(f"training again in {out}")
    # In a process of its own: a process's threads are set when it starts.
    environment = {"OMP_NUM_THREADS": str(threads or os.cpu_count())}
    environment |= {"ACCELERATE_USE_CPU": "true"} if on_cpu else {}
    processes = facts.get("processes", 1)
    again = [str(out), "--resume", *["model.trust_remote_code=true"] * trust_remote_code]
    train_in_processes(again, out=out, processes=processes, environment=environment)
    return verdict(run, Run(out))


def changes(facts: Mapping[str, Any], *, device: str, recipe: Recipe) -> list[str]:
    """A line for each way in which code, versions or hardware are not those that ``facts``, a run's card, names."""
    now = {"versions": versions(recipe), "git": git_state(), "hardware": hardware(torch.device(device))}
    then = {part: facts.get(part) for part in now}
    lines = changed_keys(then, now, free=("hardware.threads",))  # which are set to what they were
    dirty = (facts.get("git") or {}).get("dirty")
    return lines + ["the code had changes that were not committed"] * bool(dirty)


def verdict(run: Run, again: Run) -> str:
    """A line that says how equal the finished runs are; fails beyond :data:`TOLERANCE`."""
    differs = first_difference(run, again)
    before, after = (open_adapter(one.result).weights() for one in (run, again))
    if before.keys() == after.keys() and all(torch.equal(value, after[key]) for key, value in before.items()):
        tensors = f"bitwise equal: all {len(before)} tensors of {again.result} are those of {run.result}"
        return f"{tensors}, and so is every metric" if differs is None else f"{tensors}; but {differs}"
    distance = relative_distance(before, after)
    line = f"the weights differ by {distance:.2g} of their norm; {differs or 'every metric is equal'}"
    if distance > TOLERANCE:
        raise MosloraError(f"not reproduced: {line}")
    return f"equal within the tolerance of {TOLERANCE:g}, but not bitwise: {line}"


def relative_distance(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """‖θ′ − θ‖ / ‖θ‖ over all tensors; infinite if they are not the same ones."""
    if {key: value.shape for key, value in before.items()} != {key: value.shape for key, value in after.items()}:
        return math.inf
    distance = sum(float((after[key].double() - value.double()).square().sum()) for key, value in before.items())
    return math.sqrt(distance / sum(float(value.double().square().sum()) for value in before.values()))


def first_difference(run: Run, again: Run) -> str | None:
    """The first metric that differs, with its step and both values; ``None`` if none does."""
    before, after = (
        {(row["step"], key): row[key] for row in one.metrics for key in row if key not in ("step", *MEASURED)}
        for one in (run, again)
    )
    for step, name in sorted({**before, **after}, key=lambda key: key[0]):  # stable: as logged within a step
        then, now = before.get((step, name)), after.get((step, name))
        if then != now:
            return f"first difference at step {step}: {name} was {then}, is {now}"
    return None
