"""The files of this machine that a recipe names, by absolute paths, so that a run is the same from every folder."""

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
    if place is not None:  # never an id of the hub, and the same once the run has begun and its predecessor is gone
        values["adapter"]["continue_from"] = os.path.abspath(os.path.expanduser(place))
    return Recipe.model_validate(values)


def make_absolute(values: dict[str, Any]) -> None:
    """Names every file of a recipe's ``values``, except the base, by its absolute path."""
    for section, key in local_files(values):
        section[key] = absolute_path(section[key])


def absolute_path(path: str) -> str:
    """The absolute path of what exists; any other text, such as a hub id, is unchanged."""
    expanded = os.path.expanduser(path)
    return os.path.abspath(expanded) if os.path.exists(expanded) else path


def last_part(path: str) -> str:
    """The last part of a local path, which is all that others are told of it."""
    return f"./{os.path.basename(os.path.realpath(os.path.expanduser(path)))}"


def local_files(values: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Section and key of every file or folder of this machine that a recipe's values name, except the base."""
    for section in (values["data"], values["evaluation"]):
        if set("./") & set(section["source"] or ""):  # the keywords for a source contain neither
            yield section, "source"
    for task in values["tasks"].values():
        if task["hub"] is not None or task["wheel"] is not None:
            continue
        for split in ("train", "test", "texts"):
            if task[split]:
                yield task, split
