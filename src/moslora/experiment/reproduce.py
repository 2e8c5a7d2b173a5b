"""Trains a finished run again, and says whether the same came out."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moslora.base.adapted import adapter_state
from moslora.base.load import load_base
from moslora.console import note, say
from moslora.errors import MosloraError
from moslora.files import write_text
from moslora.processes.devices import GPU, gpus
from moslora.recipe import Recipe
from moslora.recipe.recipe import changed_keys
from moslora.runs.adapter_folder import open_adapter
from moslora.runs.continued import read_continued
from moslora.runs.lineage import predecessor_of
from moslora.runs.manifest import RECIPE
from moslora.runs.resuming import refuse_reproduction
from moslora.runs.run import Run
from moslora.training.launch import train_in_processes
from moslora.training.prepare import adapt, gather_inputs
from moslora.training.run_card import git_state, hardware, versions
from moslora.training.tracking import MEASURED

TOLERANCE = 0.05
"""Largest ‖θ′ − θ‖ / ‖θ − θ₀‖ that other hardware or versions may cause by rounding; θ are all weights of the adapter,
θ₀ those at its start. Ten times the largest that was measured: docs/comparing.md has the reruns."""


def reproduce(run: Run, *, out: Path, trust_remote_code: bool = False) -> str:
    """Trains ``run`` again in ``out``, with as many processes and threads, and says how equal metrics and weights are.
    ``trust_remote_code``: the base's own Python code may run, which a run's recipe cannot allow.

    Raises:
        MosloraError: the rows are others, training failed, or the weights differ by more than :data:`TOLERANCE`.
    """
    refuse_reproduction(run, out)
    recipe = run.recipe_to_resume()
    facts = run.facts
    if trust_remote_code:
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"trust_remote_code": True})})
    read_continued(recipe, begun_with=predecessor_of(facts))  # which refuses other weights
    data = gather_inputs(recipe).data
    refuse_other_rows(facts.get("data", {}), {"sha256": data.sha256, "tokens_sha256": data.tokens_sha256})
    if not Run(out).exists:
        write_text(out / RECIPE, (run.path / RECIPE).read_text(encoding="utf-8"))
    threads = facts.get("hardware", {}).get("threads")
    # In a process of its own: a process's threads are set when it starts.
    environment = {"OMP_NUM_THREADS": str(threads or os.cpu_count())}
    device = GPU
    if threads or not gpus():
        device = "cpu"
        environment["ACCELERATE_USE_CPU"] = "true"
    for line in changes(facts, device=device, recipe=recipe):
        note(line)
    say(f"training again in {out}")
    again = [str(out), "--resume"]
    if trust_remote_code:
        again.append("model.trust_remote_code=true")
    train_in_processes(again, out=out, processes=facts.get("processes", 1), environment=environment)
    return verdict(run, Run(out), start=start_of(recipe))


def refuse_other_rows(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses training rows, or tokens of them, whose hash is not that of the run, as far as it has recorded them: they
    train another model."""
    for key, what in {"sha256": "training rows", "tokens_sha256": "tokens of the training rows"}.items():
        if key in then and then[key] != now[key]:
            hashes = f"sha256 was {then[key][:12]}…, is {now[key][:12]}…"
            raise MosloraError(f"not reproduced: the {what} differ from the run's ({hashes})")


def start_of(recipe: Recipe) -> dict[str, Tensor]:
    """The adapter's weights before the first step: drawn from the recipe's seed, and where its start says so made of
    the base's; or those of the adapter that it continues."""
    return adapter_state(adapt(load_base(recipe.model), recipe, start=read_continued(recipe)))


def changes(facts: Mapping[str, Any], *, device: str, recipe: Recipe) -> list[str]:
    """A line for each way in which code, versions or hardware are not those that ``facts``, a run's card, names."""
    now = {
        "versions": versions(recipe.model, recipe.adapter),
        "git": git_state(),
        "hardware": hardware(torch.device(device)),
    }
    then = {part: facts.get(part) for part in now}
    lines = changed_keys(then, now, free=["hardware.threads"])  # which are set to what they were
    git = facts.get("git")
    if git and git.get("dirty"):
        lines.append("the code had uncommitted changes")
    return lines


def verdict(run: Run, again: Run, *, start: Mapping[str, Tensor]) -> str:
    """A line that says how equal the finished runs are, whose adapters started as ``start``; fails beyond
    :data:`TOLERANCE`, or where the rows are others."""
    refuse_other_rows(run.facts.get("data", {}), again.facts["data"])
    differs = first_difference(run, again)
    before = open_adapter(run.result).weights()
    after = open_adapter(again.result).weights()
    if _are_equal(before, after):
        line = f"bitwise equal: all {len(before)} tensors of {again.result} are those of {run.result}"
        if differs is not None:
            return f"{line}; but {differs}"
        return f"{line}, and so is every metric"
    distance = relative_distance(before, after, start=start)
    line = f"the weights differ by {distance:.2g} of what training changed; {differs or 'every metric is equal'}"
    if distance > TOLERANCE:
        raise MosloraError(f"not reproduced: {line}")
    return f"equal within the tolerance of {TOLERANCE:g}, but not bitwise: {line}"


def _are_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    if one.keys() != other.keys():
        return False
    return all(torch.equal(value, other[name]) for name, value in one.items())


def relative_distance(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], *, start: Mapping[str, Tensor]
) -> float:
    """‖θ′ − θ‖ / ‖θ − θ₀‖ over all tensors; infinite if they are not the same ones. Not of ‖θ‖, which is mostly A's
    start."""
    if not _shapes(before) == _shapes(after) == _shapes(start):
        return math.inf
    changed = _distance(before, start)
    if not changed:
        return math.inf
    return _distance(before, after) / changed


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in weights.items()}


def _distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """‖θ′ − θ‖ over all tensors."""
    squares = [float((value.double() - other[key].double()).square().sum()) for key, value in one.items()]
    return math.sqrt(sum(squares))


def first_difference(run: Run, again: Run) -> str | None:
    """The first metric of ``run`` that differs, with its step and both values; ``None`` if none does. An earlier
    version logged fewer steps."""
    before = _metrics(run)
    after = _metrics(again)
    for (step, name), then in sorted(before.items(), key=lambda item: item[0][0]):  # stable: as logged within a step
        now = after.get((step, name))
        if then != now:
            return f"first difference at step {step}: {name} was {then}, is {now}"
    return None


def _metrics(run: Run) -> dict[tuple[int, str], Any]:
    """By step and name the metrics that equal runs have in common."""
    found = {}
    for row in run.metrics:
        for name, value in row.items():
            if name not in ("step", *MEASURED):
                found[row["step"], name] = value
    return found
