"""What a name on the command line means: a run or a model. Importing this does not load torch."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moslora.base.resolve import available_offline, refuse_mistyped_path
from moslora.errors import UsageError
from moslora.files import near_folders
from moslora.recipe import Recipe, resolve_tasks
from moslora.runs import RUNS
from moslora.runs.adapter_folder import AdapterFolder, open_adapter
from moslora.runs.evaluation_defaults import read_evaluation_defaults
from moslora.runs.peft_files import CONFIG
from moslora.runs.run import is_checkpoints, is_run, locate_adapter
from moslora.tasks import GROUP, Task


@dataclass(frozen=True)
class Named:
    """A run's adapter, or a model, as it was named, with what its folder says.

    Attributes:
        name: as typed.
        recipe: how it is asked; ``None`` if nothing says so.
        adapter: of the run; ``None`` for a model.
    """

    name: str
    recipe: Recipe | None
    adapter: AdapterFolder | None = None


def read_named(target: str, *, trust_remote_code: bool = False) -> Named:
    """Reads what ``target`` names: a run, an adapter folder, a folder of a model or of PEFT, or a hub id, which is not
    looked up.

    ``trust_remote_code``: the base's own Python code may run, which a run's recipe cannot allow.
    """
    path = Path(os.path.expanduser(target))
    if not names_run(target):
        return Named(target, read_evaluation_defaults(path))
    adapter = open_adapter(locate_adapter(path), trust_remote_code=trust_remote_code)
    return Named(target, adapter.recipe, adapter)


def tasks_to_ask(recipe: Recipe | None, typed: str | Sequence[str] | None) -> tuple[Task, ...]:
    """The ``typed`` tasks, by default those of the recipe, or the eight sets."""
    if recipe is None:
        return resolve_tasks(GROUP if typed is None else typed)
    if typed is None:
        return recipe.questions.tasks
    return resolve_tasks(typed, recipe.own_tasks)


def names_run(target: str) -> bool:
    """Whether ``target`` is a run or an adapter folder, or names one that is not there, rather than a model, or an
    adapter of PEFT."""
    path = Path(os.path.expanduser(target))
    if os.path.isdir(path):
        return not any((path / name).is_file() for name in ("config.json", CONFIG))
    if path.parent == RUNS or is_checkpoints(path.parent) or is_run(path):
        return True
    near = [str(RUNS / path)]
    if not os.path.isdir(RUNS / path):
        near = [folder for folder in near_folders(path) if is_run(Path(folder)) or Path(folder, CONFIG).is_file()]
    if near and available_offline(target) is None:
        raise UsageError(f"{target}: no such folder or model; did you mean {', '.join(near)}?")
    refuse_mistyped_path(target, said=target)
    return False
