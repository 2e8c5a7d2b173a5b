"""What may change when a run is resumed, and what may not: checked before anything is loaded."""

from pathlib import Path
from typing import Any

from moslora.errors import UsageError, some
from moslora.files import in_use
from moslora.recipe import GONE, Recipe, TrainingSection
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

LENGTH = ("training.epochs", "training.max_steps")
"""May change, too, where no step depends on how many come after it (`bound_to_length`)."""


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
