"""Checks whether a run can be resumed, or trained again, in a folder. Importing this module does not load torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moslora.console import say
from moslora.errors import MosloraError, UsageError, some
from moslora.files import in_use, refuse_used
from moslora.recipe import KEPT, Recipe, TrainingSection
from moslora.runs.absolute_paths import with_absolute_paths
from moslora.runs.adapter_folder import AdapterFolder, open_adapter
from moslora.runs.best import best_of
from moslora.runs.run import RESULT, Run


def refuse_other_run(run: Run, recipe: Recipe, *, resuming: bool) -> None:
    """Refuse a folder that is not empty, unless it holds a run of ``recipe`` that is to be resumed.

    Also refuse to resume a run whose training ended and whose result and checkpoints were removed.
    """
    if resuming and run.exists:
        refuse_other_recipe(run.path, then=run.recipe_to_resume(), now=recipe)
        if run.without_result:
            raise UsageError(
                f"{run.path}: training ended, but {RESULT}/ is gone; train again into another folder with --out"
            )
    elif in_use(run.path):
        fix = "choose another folder with name=… or --out"
        facts = run.facts
        is_over = run.made_elsewhere or ("seconds" in facts and (run.finished or not run.adapters))
        if run.exists and not is_over:
            fix = f"resume that run: {run.resume_command}; or {fix}"
        raise UsageError(f"{run.path}: not empty; {fix}")


def newest_saved(run: Run, recipe: Recipe) -> AdapterFolder | None:
    """Result of ``run``, or else its newest intact checkpoint; ``None`` if none was saved yet.

    Raises:
        UsageError: it is of another recipe than ``recipe``.
        MosloraError: the result and all checkpoints are damaged.
    """
    places = [path for path in (run.result, *run.checkpoints[::-1]) if path.is_dir()]
    for path in places:
        try:
            saved = open_adapter(path)
            best = best_checkpoint(run, saved.manifest, saved.recipe.training)
            if best is not None and path != run.result:  # which may become the result
                open_adapter(best)
        except UsageError:  # written by another version
            raise
        except MosloraError as error:
            say(f"skipped {path}: {error}")
            continue
        refuse_other_recipe(path, then=saved.recipe, now=recipe)
        return saved
    if places:
        raise MosloraError(f"{run.path}: no intact checkpoint; start a new run with name=… or --out")
    return None


def best_checkpoint(run: Run, manifest: Mapping[str, Any], training: TrainingSection) -> Path | None:
    """Checkpoint of the best step of ``run`` at the time when the adapter folder with this ``manifest`` was written;
    ``None`` if the run does not keep its best step, or had none yet."""
    best = best_of(manifest)
    if training.result != "best" or best is None or best.step is None:
        return None
    return run.checkpoint(best.step)


def refuse_other_recipe(folder: Path, *, then: Recipe, now: Recipe) -> None:
    """Refuse to resume ``folder`` with a recipe that differs in a key that must not change."""
    # Paths are relative in overrides, and in runs of earlier versions.
    differences = with_absolute_paths(now).differences(with_absolute_paths(then), *KEPT)
    if differences:
        raise UsageError(
            f"{folder}: made with another recipe ({some(differences, separator='; ')}); start a new run with name=… or"
            " --out, or resume with the old values"
        )


def refuse_reproduction(run: Run, out: Path) -> None:
    """Refuse to train ``run`` again if it has no result to compare with. Also refuse ``out`` if it is not empty, unless
    it holds a run of the same recipe."""
    recipe = run.recipe_to_resume()
    if not run.finished:
        raise UsageError(
            f"{run.path}: has not finished, so there is no result to reproduce; resume it: {run.resume_command}"
        )
    if not Run(out).exists:
        refuse_used(out)
    elif with_absolute_paths(Run(out).recipe_to_resume()) != with_absolute_paths(recipe):
        raise UsageError(f"{out}: holds a run of another recipe; choose another folder with --out, or remove it")
