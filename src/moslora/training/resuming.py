"""The newest checkpoint, and the keys of a recipe that may change when a run is resumed from it."""

from pathlib import Path

from moslora.console import say
from moslora.errors import MosloraError, UsageError, some
from moslora.files import in_use
from moslora.recipe import Recipe
from moslora.runs.adapter_folder import AdapterFolder, open_adapter
from moslora.runs.manifest import MANIFEST, RECIPE
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
)
"""Keys of a recipe that may change when a run is resumed: output, memory, and the source of the rows (the rows are
compared themselves). :data:`MICRO_BATCH` may change too, except with a gate's balance, which each micro-batch takes
over its own rows."""

MICRO_BATCH = "training.micro_batch_tokens"


def refuse_other_run(run: Run, recipe: Recipe, *, resuming: bool) -> None:
    """Refuses a folder with anything but this run, to be resumed."""
    if resuming and run.exists:
        _refuse_other_recipe(run.path, then=run.recipe_to_resume(), now=recipe)
    elif in_use(run.path):
        raise UsageError(
            f"{run.path}: not empty; resume that run with --resume, or choose another folder with name=… or --out"
        )


def newest_saved(run: Run, recipe: Recipe) -> AdapterFolder | None:
    """The result of ``run``, or else its newest intact checkpoint; ``None`` if there is none yet.

    Raises:
        UsageError: it was made with another recipe.
        MosloraError: all of them are damaged.
    """
    found = [*([run.result] if run.result.is_dir() else []), *reversed(run.checkpoints)]
    for path in found:
        try:
            saved = open_adapter(path)
        except MosloraError as error:
            if isinstance(error, UsageError) and (path / MANIFEST).is_file():
                raise  # not damaged, but written by a newer version
            say(f"skipped: {error}")
            continue
        _refuse_other_recipe(path, then=saved.recipe, now=recipe)
        return saved
    if found:
        raise MosloraError(f"{run.path}: no intact checkpoint; start a new run with name=… or --out")
    return None


def _refuse_other_recipe(folder: Path, *, then: Recipe, now: Recipe) -> None:
    """Refuses to resume ``folder`` with a recipe that differs in more than :data:`FREE` keys."""
    free = FREE if getattr(now.adapter.mixer, "balance", 0) else (*FREE, MICRO_BATCH)
    if changes := now.changes(then, free=free):
        raise UsageError(
            f"{folder}: made with another recipe ({some(changes, separator='; ')}); resume with {folder / RECIPE}, or"
            " start a new run with name=… or --out"
        )
