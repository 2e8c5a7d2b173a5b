"""Checks of a run's folder and recipe, before anything is loaded."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moslora.errors import UsageError, some
from moslora.files import in_use
from moslora.recipe import GONE, Recipe, TrainingSection
from moslora.recipe.yaml_text import render_inline
from moslora.runs.adapter_folder import stored_recipe
from moslora.runs.manifest import RECIPE

FREE = (
    "data.source",
    "evaluation.",
    "tracking.",
    "model.gradient_checkpointing",
    "model.trust_remote_code",
    "training.strategy",
    "training.log_every",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.validate_every",
    *GONE,
)
"""Keys of a recipe that may change when a run is resumed: output, memory, and the source of the rows (the rows are
compared themselves). :data:`MICRO_BATCH` may change too, except with a gate's balance, which each micro-batch takes
over its own rows."""

MICRO_BATCH = "training.micro_batch_tokens"

LENGTH = ("training.epochs", "training.max_steps")
"""May change, too, where no step depends on how many come after it (`bound_to_length`)."""


def resume_command(out: Path) -> str:
    """The command that resumes the run in ``out``."""
    return f"moslora train {shlex.quote(str(out))} --resume"


def refuse_other_run(out: Path, recipe: Recipe, *, resuming: bool) -> None:
    """Refuses a folder with anything but this run, to be resumed."""
    if resuming and (out / RECIPE).exists():
        refuse_other_recipe(out, then=stored_recipe(out), now=recipe)
    elif in_use(out):
        raise UsageError(
            f"{out}: not empty; resume that run with --resume, choose another folder with name=… or --out, or delete it"
        )


def refuse_other_recipe(folder: Path, *, then: Recipe, now: Recipe) -> None:
    """Refuses to resume ``folder`` with a recipe that differs in more than :data:`FREE` keys."""
    free = FREE if getattr(now.adapter.mixer, "balance", 0) else (*FREE, MICRO_BATCH)
    bound = bound_to_length(now.training)
    changes = changed_keys(
        then.model_dump(mode="json"), now.model_dump(mode="json"), free=free if bound else (*free, *LENGTH)
    )
    if changes:
        of_length = any(change.startswith(LENGTH) for change in changes)
        why = f": with {bound} each step depends on the run's length" if of_length else ""
        raise UsageError(
            f"{folder}: made with another recipe ({some(changes, separator='; ')}){why}; resume with {folder / RECIPE},"
            " or start a new run with name=… or --out"
        )


def bound_to_length(training: TrainingSection) -> str | None:
    """The setting by which a step depends on the length of the run, so that a longer run is another from the start."""
    if training.schedule != "constant":
        return f"training.schedule = {training.schedule}"
    if isinstance(training.warmup_steps, float):
        return f"training.warmup_steps = {training.warmup_steps:g}"
    return None if training.rank_budget is None else "training.rank_budget"


def binding(recipe: Recipe) -> dict[str, Any]:
    """The values of a run that may not change, by dotted key."""
    return {key: value for key, value in flat(recipe.model_dump(mode="json")).items() if not key.startswith(FREE)}


def changed_keys(then: Mapping[str, Any], now: Mapping[str, Any], *, free: tuple[str, ...]) -> list[str]:
    """`key was …, is …` for every key that differs between two recipes as JSON values, but for those in ``free``."""
    before, after = flat(then), flat(now)
    return [
        f"{key} was {render_inline(before.get(key))}, is {render_inline(after.get(key))}"
        for key in dict.fromkeys((*after, *before))
        if not key.startswith(free) and before.get(key) != after.get(key)
    ]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
