"""Training of a recipe, and what is refused before torch is loaded, which takes seconds."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from moslora.base.resolve import local_folder
from moslora.data.sources import refuse_missing
from moslora.files import locked
from moslora.process_rank import is_main_process
from moslora.recipe import Recipe
from moslora.runs.origin import locate_predecessor
from moslora.runs.resuming import refuse_other_run
from moslora.runs.run import RUN, Run


def refuse_training(recipe: Recipe, run: Run, *, resuming: bool) -> None:
    """Refuse to train into a folder in use, or with a model, a predecessor or rows that do not exist."""
    if is_main_process():
        lock: AbstractContextManager[None] = nullcontext()
        if run.path.exists():
            lock = locked(run.path, shared=(RUN,))  # which removes what a killed process left, even if it is refused
        with lock:
            refuse_other_run(run, recipe, resuming=resuming)
    local_folder(recipe.model.name, revision=recipe.model.revision)
    place = recipe.adapter.continue_from
    if place is not None and not (resuming and run.adapters):  # from which it goes on, whatever became of that
        locate_predecessor(place)
    refuse_missing(recipe.training_tasks, "train", source=recipe.data.source)


def train_recipe(recipe: Recipe, *, out: Path, resuming: bool = False) -> Path:
    """Train ``recipe`` in the run folder ``out``, and return the folder ``adapter`` in it. Raises the errors of
    `refuse_training` and of :func:`moslora.training.session.train_run`."""
    run = Run(out)
    refuse_training(recipe, run, resuming=resuming)
    from moslora.training.session import train_run

    return train_run(recipe, run, resuming=resuming)
