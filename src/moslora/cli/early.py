"""What is refused before torch is loaded, which takes seconds: mistyped names, paths and options.

Every command calls one of these first. What they call is called again where the work is done, by users of the library
too.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moslora.choices import FormatName
from moslora.errors import UsageError
from moslora.prompts.protocols import Asked, ProtocolName, choose, refuse_beams
from moslora.ranks import is_main_process

if TYPE_CHECKING:
    from moslora.recipe import Recipe
    from moslora.runs.run import Run
    from moslora.tasks import Task


def refuse_model(name: str | None) -> None:
    """Refuses a path that leads to no model."""
    from moslora.base.resolve import local_folder

    if name is not None:
        local_folder(name)


def refuse_rows(tasks: "Sequence[Task]", source: str) -> None:
    """Refuses a recipe whose training rows are not there."""
    from moslora.data.sources import refuse_missing

    refuse_missing(tasks, "train", source=source)


def refuse_training(recipe: "Recipe", run: "Run", *, resuming: bool) -> None:
    """Refuses to train into a folder in use, or with a model or rows that are not there."""
    from moslora.base.resolve import local_folder
    from moslora.files import locked
    from moslora.runs.continuing import check_predecessor
    from moslora.runs.resuming import refuse_other_run
    from moslora.runs.run import RUN

    if is_main_process() and run.path.is_dir():
        with locked(run.path, shared=(RUN,)):  # which removes what a killed process left, even if the run is refused
            refuse_other_run(run, recipe, resuming=resuming)
    elif is_main_process():
        refuse_other_run(run, recipe, resuming=resuming)
    local_folder(recipe.model.name, revision=recipe.model.revision)
    if not (resuming and run.adapters):  # from which it goes on, whatever became of its predecessor
        check_predecessor(recipe)
    refuse_rows(recipe.training_tasks, recipe.data.source)


def refuse_target(target: str) -> "Recipe | None":
    """Refuses a run or a model that is not there. Returns the recipe that says how to ask it, if there is one."""
    from moslora.runs.evaluation_defaults import read_evaluation_defaults
    from moslora.runs.manifest import RECIPE, check_hash, read_manifest, written_recipe
    from moslora.runs.named import names_run
    from moslora.runs.run import locate_adapter

    path = Path(os.path.expanduser(target))
    if not names_run(target):
        return read_evaluation_defaults(path)
    adapter = locate_adapter(path)
    manifest = read_manifest(adapter)
    check_hash(adapter / RECIPE, manifest["sha256"][RECIPE])
    return written_recipe(adapter / RECIPE, by=manifest["moslora"])


def refuse_evaluation(
    target: str,
    *,
    tasks: str | None,
    protocol: ProtocolName | None,
    format: FormatName | None,
    source: str | None,
    beams: int | None,
) -> None:
    """Refuses a target, tasks or a source that cannot be used, and a protocol that cannot read a format."""
    from moslora.data.sources import refuse_missing
    from moslora.recipe import resolve_tasks
    from moslora.tasks import TASKS

    default = Asked()
    own_tasks: Mapping[str, Task] = {}
    own_source = "wheel"
    chosen = tuple(TASKS.values())
    recipe = refuse_target(target)
    if recipe is not None:
        default = Asked(recipe.evaluation.protocol, recipe.data.format)
        own_tasks = recipe.own_tasks
        own_source = recipe.questions.source
        chosen = recipe.questions.tasks
    asked = choose(default, protocol=protocol, format=format)
    refuse_beams(beams, asked.protocol)
    if tasks is not None:
        chosen = resolve_tasks(tasks, own_tasks)
    refuse_missing(chosen, "test", source=source or own_source)


def refuse_scores_folder(out: Path | None) -> None:
    """Refuses a folder for an evaluation that holds anything else."""
    from moslora.files import refuse_used
    from moslora.runs.run import SETTINGS

    if out is not None and is_main_process() and not (out / SETTINGS).exists():
        refuse_used(out)


def refuse_paths(paths: Sequence[Path], *, evaluation: str | None) -> None:
    """Refuses runs that are not there or not evaluated, in general or in the way that is named."""
    from moslora.runs.evaluation import is_evaluation
    from moslora.runs.run import Run, is_run

    has_logs = any(path.is_file() for path in paths)  # which are compared with logs alone
    for path in paths:
        if not (path.exists() or is_run(path) or is_evaluation(path)):
            raise UsageError(f"{path}: no such file or folder; moslora runs lists the runs")
        if is_run(path) and not has_logs:
            Run(path).evaluation(evaluation)
