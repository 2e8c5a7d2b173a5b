"""What a name on the command line means: a run or a model. Importing this does not load torch."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moslora.base.resolve import available_offline, is_mistyped_path, no_such_folder
from moslora.errors import UsageError
from moslora.files import near_folders
from moslora.recipe import Recipe, resolve_tasks
from moslora.runs import RUNS
from moslora.runs.evaluation_defaults import read_evaluation_defaults
from moslora.runs.manifest import TRUST, read_checked
from moslora.runs.run import is_checkpoints, is_run, locate_adapter
from moslora.tasks import GROUP, Task


@dataclass(frozen=True)
class Named:
    """A run's adapter, or a model, as it was named, with what its folder says.

    Attributes:
        name: as typed.
        recipe: how it is asked; ``None`` if nothing says so.
        adapter: the folder of the run's adapter, all of whose files are those that were written; ``None`` for a model.
        manifest: of the adapter.
    """

    name: str
    recipe: Recipe | None
    adapter: Path | None = None
    manifest: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return Path(os.path.expanduser(self.name))


def read_named(target: str, *, trust_remote_code: bool = False) -> Named:
    """Reads what ``target`` names: a run, an adapter folder, a model folder, or a hub id, which is not looked up.

    ``trust_remote_code``: the base's own Python code may run, which a run's recipe cannot allow.
    """
    path = Path(os.path.expanduser(target))
    if not names_run(target):
        return Named(target, read_evaluation_defaults(path))
    adapter = locate_adapter(path)
    overrides = []
    if trust_remote_code:
        overrides.append(f"{TRUST}=true")
    recipe, manifest = read_checked(adapter, overrides)
    return Named(target, recipe, adapter, manifest)


def tasks_to_ask(recipe: Recipe | None, typed: str | Sequence[str] | None) -> tuple[Task, ...]:
    """The ``typed`` tasks, by default those of the recipe, or the eight sets."""
    if recipe is None:
        return resolve_tasks(GROUP if typed is None else typed)
    if typed is None:
        return recipe.questions.tasks
    return resolve_tasks(typed, recipe.own_tasks)


def names_run(target: str) -> bool:
    """Whether ``target`` is a run or an adapter folder, or names one that is not there, rather than a model."""
    path = Path(os.path.expanduser(target))
    if os.path.isdir(path):
        return not (path / "config.json").is_file()
    if path.parent == RUNS or is_checkpoints(path.parent) or is_run(path):
        return True
    near = [str(RUNS / path)]
    if not os.path.isdir(RUNS / path):
        near = [folder for folder in near_folders(path) if is_run(Path(folder))]
    if near and available_offline(target) is None:
        raise UsageError(f"{target}: no such folder or model; did you mean {', '.join(near)}?")
    if is_mistyped_path(target):
        raise UsageError(f"{target}: {no_such_folder(target)}")
    return False
