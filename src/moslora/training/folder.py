"""Whose folder a run writes into, and on how many devices: refused before anything is loaded, where it cannot work."""

import os
from pathlib import Path
from typing import Any

import torch

from moslora.checkpoint import AdapterFolder, stored_recipe
from moslora.errors import UsageError, some
from moslora.files import in_use
from moslora.manifest import RECIPE
from moslora.recipe import Recipe
from moslora.recipe.yaml_text import render_inline

FREE = (
    "data.source",
    "evaluation.",
    "tracking.",
    "model.gradient_checkpointing",
    "model.trust_remote_code",
    "training.log_every",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.validate_every",
)
"""Keys of a recipe that may change when a run is resumed: they decide what is told and kept, or how much memory;
and where the rows lie, which are compared themselves.
:data:`MICRO_BATCH` may as well, but for a gate's balance."""

MICRO_BATCH = "training.micro_batch_tokens"


def refuse_other_run(out: Path, recipe: Recipe, *, resuming: bool) -> None:
    """Refuses a folder that is in use for anything but this run.

    Raises:
        UsageError: it holds another run, or this one is not to be resumed.
    """
    stored = out / RECIPE
    if not (resuming and stored.exists()):
        if in_use(out):
            raise UsageError(
                f"{out}: not empty; go on with that run by --resume, choose another folder with --out, or remove it"
            )
        return
    if other := _changes(stored_recipe(out), recipe):
        raise UsageError(
            f"{out}: holds a run of another recipe ({other}); moslora train {out} --resume goes on with it as it was,"
            " another --out begins anew"
        )


def refuse_other_recipe(saved: AdapterFolder, recipe: Recipe) -> None:
    """Refuses a run's recipe that is no longer the one which ``saved`` was trained by: the file may have been edited.

    Raises:
        UsageError: it is not.
    """
    if other := _changes(saved.recipe, recipe):
        raise UsageError(
            f"{saved.path}: trained by another recipe ({other}); put the run's back as in {saved.path / RECIPE}, or"
            " begin anew with another --out"
        )


def _changes(then: Recipe, now: Recipe) -> str:
    """What makes of a run another one, as text; empty if nothing does."""
    before, after = (_flat(recipe.model_dump(mode="json")) for recipe in (then, now))
    free = FREE if balance(now) else (*FREE, MICRO_BATCH)
    # A section that one of the two has not got is missing there key by key.
    keys = [key for key in dict.fromkeys((*after, *before)) if not key.startswith(free)]
    return some(
        [
            f"{key} was {render_inline(before.get(key))}, is {render_inline(after.get(key))}"
            for key in keys
            if before.get(key) != after.get(key)
        ],
        separator="; ",
    )


def balance(recipe: Recipe) -> float:
    """Weight of a gate's balance: a part of the loss that every micro-batch takes over its own rows."""
    return getattr(recipe.adapter.mixer, "balance", 0.0)


def other_shares(recipe: Recipe, *, then: tuple[int, int], now: tuple[int, int]) -> list[str]:
    """What becomes of a resumed run whose steps are shared out otherwise than before; nothing where they are not.

    Args:
        recipe: the run's.
        then: processes, and tokens of a micro-batch at most.
        now: likewise.
    """
    effects = ["dropout draws other numbers"] * (recipe.adapter.dropout > 0)
    effects += ["the gate's balance is over other rows"] * (balance(recipe) > 0)
    return [
        f"{before} {what} before, {after} now: {', '.join(effects)}"
        for what, before, after in zip(("processes", "tokens in a micro-batch"), then, now, strict=True)
        if before != after and effects
    ]


def refuse_too_many_processes() -> None:
    """Refuses more processes on this machine than it has GPUs: two on one would run out of memory, or hang.

    Raises:
        UsageError: there are.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1)
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    if torch.cuda.is_available() and not on_cpu and here > (devices := torch.cuda.device_count()):
        raise UsageError(
            f"{here} processes on this machine, but {devices} GPU{'s' * (devices != 1)}; start {devices}"
            f" (--num_processes {devices}, or --nproc-per-node {devices})"
        )


def refuse_other_data(out: Path, *, then: str, now: str) -> None:
    """Refuses to go on with other rows than a run began with.

    Raises:
        UsageError: they have changed.
    """
    if then != now:
        raise UsageError(
            f"{out}: its rows have changed since (sha256 {then[:12]}…, now {now[:12]}…);"
            " restore them, or begin anew with another --out"
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
