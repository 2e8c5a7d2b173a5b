"""Absolute paths for the local files that a recipe names, so that a run works from every folder."""

import os
from collections.abc import Iterator
from typing import Any

from moslora.choices import BUILTIN_MODEL
from moslora.recipe import Recipe


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """``recipe`` with absolute paths of its rows, tasks and base, and of the adapter that it continues."""
    values = recipe.model_dump(mode="json")
    make_absolute(values)
    if recipe.model.name != BUILTIN_MODEL:
        values["model"]["name"] = absolute_path(recipe.model.name)
    place = recipe.adapter.continue_from
    if place is not None:  # a local path, made absolute even if that adapter was removed after the run began
        values["adapter"]["continue_from"] = os.path.abspath(os.path.expanduser(place))
    return Recipe.model_validate(values)


def make_absolute(values: dict[str, Any]) -> None:
    """Make local paths of sources and of tasks' files in a recipe's ``values`` absolute, in place."""
    for section, key in local_files(values):
        section[key] = absolute_path(section[key])


def absolute_path(path: str) -> str:
    """Absolute path of an existing file or folder; any other text, such as a hub id, unchanged."""
    expanded = os.path.expanduser(path)
    return os.path.abspath(expanded) if os.path.exists(expanded) else path


def last_part(path: str) -> str:
    """``./`` and the last part of a local path after links are resolved: all of the path that is published."""
    return f"./{os.path.basename(os.path.realpath(os.path.expanduser(path)))}"


def local_files(values: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Mapping in a recipe's ``values``, and key in it, of each source or file of a task that may be a local path. A
    data set of the hub, ``owner/name``, is such a source."""
    for section in (values["data"], values["evaluation"]):
        if set("./") & set(section["source"] or ""):  # the keywords for a source contain neither
            yield section, "source"
    for task in values["tasks"].values():
        if task["hub"] is not None or task["wheel"] is not None:
            continue
        for split in ("train", "test", "texts"):
            if task[split]:
                yield task, split
