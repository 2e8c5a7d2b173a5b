"""How a folder of weights wants to be asked: ``moslora.yaml`` beside them, a part of their run's recipe.

It has the section ``evaluation``, the prompt format, and the tasks with their sources. Files are named by absolute
paths, so that they are found from anywhere. Other readers of the folder ignore it.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moslora.choices import BUILTIN_MODEL, DType, FormatName, Protocol
from moslora.errors import UsageError
from moslora.files import write_text
from moslora.recipe import PROTOCOLS, Recipe
from moslora.recipe.yaml_text import render
from moslora.runs.manifest import written_recipe

ASKING = "moslora.yaml"


def write_asking(folder: Path, recipe: Recipe, *, dtype: DType, task: str | None) -> None:
    """Writes how the run of ``recipe`` is asked; of weights whose gate is fixed at ``task``, about that alone."""
    values = recipe.model_dump(mode="json", include={"data": {"source", "format"}, "evaluation": True, "tasks": True})
    values["evaluation"]["tasks"] = [task] if task else [entry.name for entry in recipe.questions.tasks]
    for section, key in local_files(values):
        section[key] = _absolute(section[key])
    values = {"name": recipe.name, "model": {"name": ".", "dtype": dtype}, **values}
    write_text(folder / ASKING, render(values))


def read_asking(folder: Path) -> Recipe | None:
    """What ``folder`` says, as a recipe, whose model is the folder itself; ``None`` if it does not say it."""
    return written_recipe(folder / ASKING, by=None) if (folder / ASKING).is_file() else None


def how_asked(
    own_protocol: Protocol,
    own_format: FormatName,
    *,
    protocol: Protocol | None,
    format: FormatName | None,
    beams: int | None,
) -> dict[str, str]:
    """The protocol and the format in which a model is asked: those that were typed, else its own, else such as fit.

    Raises:
        UsageError: the typed protocol cannot read the typed format's answers, or generates nothing for the beams.
    """
    formats = (format,) if format else (own_format, *PROTOCOLS)
    for candidate in formats:
        readers = PROTOCOLS[candidate]
        fitting = protocol or (own_protocol if own_protocol in readers else readers[0])
        if fitting in readers:
            break
    else:
        fix = f"choose --protocol {' or '.join(PROTOCOLS[str(format)])}"
        raise UsageError(f"--protocol {protocol} cannot read the answers of --format {format}; {fix}")
    if beams is not None and beams > 1 and fitting != "generate":
        raise UsageError(f"--beams {beams}: only with --protocol generate, not {fitting}")
    return {"protocol": fitting, "format": candidate}


def located(recipe: Recipe) -> Recipe:
    """``recipe`` with absolute paths of its rows, tasks and base, so that its run is the same from every folder."""
    values = recipe.model_dump(mode="json")
    for section, key in local_files(values):
        section[key] = _absolute(section[key])
    if recipe.model.name != BUILTIN_MODEL:
        values["model"]["name"] = _absolute(recipe.model.name)
    return Recipe.model_validate(values)


def _absolute(path: str) -> str:
    """The absolute path of what is there; any other text, such as a hub id, is left as it is."""
    whole = os.path.expanduser(path)
    return os.path.abspath(whole) if os.path.exists(whole) else path


def local_files(values: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Section and key of every file or folder of this machine that a recipe's values name, but for the base."""
    for section in (values["data"], values["evaluation"]):
        if set("./") & set(section["source"] or ""):  # the sources' keywords have neither
            yield section, "source"
    for task in values["tasks"].values():
        if task["hub"] is None:
            yield from ((task, split) for split in ("train", "test", "texts") if task[split])
