"""Whether a run can be trained on, or trained again, in a folder. Importing this does not load torch."""

from pathlib import Path

from moslora.errors import UsageError, some
from moslora.files import in_use, refuse_used
from moslora.recipe import Recipe
from moslora.runs.manifest import RECIPE
from moslora.runs.run import Run


def refuse_other_run(run: Run, recipe: Recipe, *, resuming: bool) -> None:
    """Refuses a folder with anything but this run, to be resumed."""
    if resuming and run.exists:
        refuse_other_recipe(run.path, then=run.recipe_to_resume(), now=recipe)
        if run.without_result:
            raise UsageError(f"{run.path}: {run.how_to_finish}")
    elif in_use(run.path):
        raise UsageError(
            f"{run.path}: not empty; resume that run: {run.resume_command}; or choose another folder"
            " with name=… or --out"
        )


def refuse_other_recipe(folder: Path, *, then: Recipe, now: Recipe) -> None:
    """Refuses to resume ``folder`` with a recipe that differs in more than its `Recipe.free` keys."""
    if changes := now.changes(then, free=now.free):
        raise UsageError(
            f"{folder}: made with another recipe ({some(changes, separator='; ')}); resume with {folder / RECIPE}, or"
            " start a new run with name=… or --out"
        )


def refuse_reproduction(run: Run, out: Path) -> None:
    """Refuses to train ``run`` again if it has no result to compare with, or in a folder with anything else."""
    recipe = run.recipe_to_resume()
    if not run.finished:
        raise UsageError(f"{run.path}: nothing to compare with; {run.how_to_finish}")
    if not Run(out).exists:
        refuse_used(out)
    elif Run(out).recipe_to_resume() != recipe:
        raise UsageError(f"{out}: holds a run of another recipe; choose another folder with --out, or remove it")
