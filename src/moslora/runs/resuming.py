"""Whether a run can be trained on, or trained again, in a folder. Importing this does not load torch."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moslora.errors import MosloraError, UsageError, some
from moslora.files import in_use, refuse_used
from moslora.recipe import KEPT, Recipe, TrainingSection
from moslora.runs.absolute_paths import with_absolute_paths
from moslora.runs.best import best_of
from moslora.runs.manifest import MANIFEST, RECIPE, read_checked
from moslora.runs.run import RESULT, Run


def refuse_other_run(run: Run, recipe: Recipe, *, resuming: bool) -> None:
    """Refuses a folder with anything but this run, to be resumed."""
    if resuming and run.exists:
        as_it_was = f"to go on as before: {run.resume_command}"
        refuse_other_recipe(run.path, then=run.recipe_to_resume(), now=recipe, fix=as_it_was)
        if run.without_result:
            raise UsageError(
                f"{run.path}: training ended, but {RESULT}/ is gone; train again into another folder with --out"
            )
        return
    found = in_use(run.path)
    if found:
        raise UsageError(f"{run.path}: {_already_there(run, found)}choose another folder with name=… or --out")


def _already_there(run: Run, found: Sequence[str]) -> str:
    """What a new run finds in its folder, with the command that goes on with it, if there is one."""
    try:
        run.recipe_to_resume()
    except UsageError:  # other files
        return f"not empty ({some(found)}); "
    closed = "seconds" in run.facts  # which a run has at its end, or gets when it is resumed
    if run.without_result or (run.finished and closed):
        return "a finished run; "
    return f"resume that run: {run.resume_command}; or "


def newest_intact(
    run: Run, recipe: Recipe, *, tell: Callable[[str], object]
) -> tuple[Path, Recipe, dict[str, Any]] | None:
    """The result of ``run``, or else its newest intact checkpoint, with its recipe and manifest; ``None`` if there is
    none yet.

    Args:
        run: the run.
        recipe: the recipe that it must be of.
        tell: is told of each that is damaged.

    Raises:
        MosloraError: all are damaged.
    """
    found = run.checkpoints[::-1]
    if run.result.is_dir():
        found.insert(0, run.result)
    for path in found:
        try:
            then, manifest = read_checked(path)
            _check_best(run, path, then, manifest)
        except MosloraError as error:
            if isinstance(error, UsageError) and (path / MANIFEST).is_file():
                raise  # not damaged, but written by a newer version
            tell(f"skipped: {error}")
            continue
        as_it_was = f"to go on as before, copy {path / RECIPE} to {run.path / RECIPE}, then: {run.resume_command}"
        refuse_other_recipe(path, then=then, now=recipe, fix=as_it_was)
        return path, then, manifest
    if found:
        raise MosloraError(f"{run.path}: no intact checkpoint; start a new run with name=… or --out")
    return None


def best_checkpoint(run: Run, manifest: Mapping[str, Any], training: TrainingSection) -> Path | None:
    """The checkpoint of the best step of ``run`` when the one with this ``manifest`` was written; ``None`` if the run
    keeps none, or if there was none yet. ``training`` are its settings."""
    best = best_of(manifest)
    if training.result != "best" or best is None or best.step is None:
        return None
    return run.checkpoint(best.step)


def _check_best(run: Run, checkpoint: Path, recipe: Recipe, manifest: Mapping[str, Any]) -> None:
    """Refuses a checkpoint if that of its best step, which may become the result, is not intact."""
    best = best_checkpoint(run, manifest, recipe.training)
    if best is None or checkpoint in (best, run.result):
        return
    try:
        read_checked(best)
    except MosloraError as error:
        raise MosloraError(f"{checkpoint}: its best step is lost: {error}") from None


def refuse_other_recipe(folder: Path, *, then: Recipe, now: Recipe, fix: str) -> None:
    """Refuses to resume ``folder`` with a recipe that differs in what a resumed run keeps."""
    # Paths are relative in runs of earlier versions, and in what is typed.
    differences = with_absolute_paths(now).differences(with_absolute_paths(then), *KEPT)
    if differences:
        raise UsageError(
            f"{folder}: made with another recipe ({some(differences, separator='; ')}); start a new run with name=… or"
            f" --out; {fix}"
        )


def refuse_reproduction(run: Run, out: Path) -> None:
    """Refuses to train ``run`` again if it has no result to compare with, or in a folder with anything else."""
    recipe = run.recipe_to_resume()
    if not run.finished:
        raise UsageError(f"{run.path}: nothing to compare with; resume it: {run.resume_command}")
    if not Run(out).exists:
        refuse_used(out)
    elif with_absolute_paths(Run(out).recipe_to_resume()) != with_absolute_paths(recipe):
        raise UsageError(f"{out}: holds a run of another recipe; choose another folder with --out, or remove it")
