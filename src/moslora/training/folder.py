"""Whose folder a run writes into: refused before anything is loaded, where it is not this run's."""

from pathlib import Path
from typing import Any

from moslora.errors import UsageError
from moslora.recipe import Recipe, load_recipe

FREE = (
    "evaluation.",
    "tracking.",
    "model.gradient_checkpointing",
    "training.micro_batch_size",
    "training.log_every",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.validate_every",
)
"""Keys of a recipe that may change when a run is resumed: they decide what is told and kept, or how much memory."""


def refuse_other_run(out: Path, recipe: Recipe, *, resuming: bool) -> None:
    """Refuses a folder that is in use for anything but this run.

    Raises:
        UsageError: it holds another run, or this one is not to be resumed.
    """
    stored = out / "recipe.yaml"
    if not (resuming and stored.exists()):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(
                f"{out}: not empty; go on with that run by --resume, choose another folder with --out, or remove it"
            )
        return
    then, now = (_flat(one.model_dump()) for one in (load_recipe(stored), recipe))
    other = [f"{key} was {then.get(key)}, is {now.get(key)}" for key in now if then.get(key) != now[key]]
    if found := [line for line in other if not line.startswith(FREE)]:
        raise UsageError(
            f"{out}: holds a run of another recipe ({'; '.join(found)}); take its own ({stored}), or another --out"
        )


def refuse_other_data(out: Path, *, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuses to go on with other rows than a run began with.

    Raises:
        UsageError: they have changed.
    """
    if then["sha256"] != now["sha256"]:
        raise UsageError(
            f"{out}: its rows have changed since (sha256 {then['sha256'][:12]}…, now {now['sha256'][:12]}…);"
            " restore them, or begin anew with another --out"
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
