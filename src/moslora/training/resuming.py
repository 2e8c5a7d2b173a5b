"""What may change when a run is resumed, and what may not: checked before anything is loaded."""

from pathlib import Path
from typing import Any

from moslora.errors import UsageError, some
from moslora.files import in_use
from moslora.recipe import GONE, Recipe
from moslora.recipe.differences import changed_keys, flat
from moslora.runs.manifest import RECIPE
from moslora.runs.run import Run

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


def refuse_other_run(run: Run, recipe: Recipe, *, resuming: bool) -> None:
    """Refuses a folder with anything but this run, to be resumed."""
    if resuming and run.exists:
        refuse_other_recipe(run.path, then=run.recipe_to_resume(), now=recipe)
    elif in_use(run.path):
        raise UsageError(
            f"{run.path}: not empty; resume that run with --resume, or choose another folder with name=… or --out"
        )


def refuse_other_recipe(folder: Path, *, then: Recipe, now: Recipe) -> None:
    """Refuses to resume ``folder`` with a recipe that differs in more than :data:`FREE` keys."""
    free = FREE if getattr(now.adapter.mixer, "balance", 0) else (*FREE, MICRO_BATCH)
    if changes := changed_keys(then.model_dump(mode="json"), now.model_dump(mode="json"), free=free):
        raise UsageError(
            f"{folder}: made with another recipe ({some(changes, separator='; ')}); resume with {folder / RECIPE}, or"
            " start a new run with name=… or --out"
        )


def binding(recipe: Recipe) -> dict[str, Any]:
    """The values of a run that may not change, by dotted key."""
    return {key: value for key, value in flat(recipe.model_dump(mode="json")).items() if not key.startswith(FREE)}
