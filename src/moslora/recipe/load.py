"""From files and overrides to one checked recipe."""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from moslora.errors import UsageError
from moslora.files import replacing
from moslora.tasks import BUILT_IN, GROUP, Task, canonical_task, split_names, unknown_names

from .adapter import AdapterSection
from .builtin import EXPERIMENTS, find_recipe, near_files
from .faults import fault_lines
from .layers import Layer, combine_layers, depth, extended, is_stored, origin_of, read_layers, shown, without_trust
from .recipe import Recipe, flat
from .yaml_text import parse, render, render_inline

NO_MODEL = Layer("missing: to train, lay it over a recipe with a model", {"model": {"name": "none"}})
"""The layer below a recipe that is only shown, or read for its tasks."""

OVERRIDE = re.compile(r"([^.=]+(?:\.[^.=]+){0,9})=(.*)", re.DOTALL)
"""`key.sub=value`; no key of a recipe has more than four parts."""


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and everything it extends, apply the overrides, and check the result.

    `extends:` takes a path relative to the file, the name of a built-in recipe, or a list of these. These are
    merged from left to right, then the file itself, then the overrides: mappings merge, everything else replaces.

    An override is `key.sub=value`, the value in YAML, such as `training.learning_rate=3e-4`.

    Raises:
        UsageError: one line for every fault in every file.
    """
    recipe, _ = _resolve(source, overrides)
    return recipe


def resolve_tasks(names: str | Sequence[str], own: Mapping[str, Task] | None = None) -> tuple[Task, ...]:
    """The tasks that a command line names.

    Args:
        names: tasks among the built-in ones and ``own``, ``commonsense`` for all eight sets, or recipes with a section
            ``tasks`` (a file, or a built-in one such as ``tasks/copa``) for all of theirs.
        own: tasks of a recipe, by name.

    Raises:
        UsageError: unknown names, one line each with the closest known name; no name at all; a file's faults.
    """
    known = dict(BUILT_IN)
    if own is not None:
        known |= own
    found: dict[str, Task] = {}
    faults = []
    for name in split_names(names):
        if _names_recipe(name):
            recipe, _ = _resolve(name, beneath=[NO_MODEL])
            if not recipe.tasks:
                faults.append(f"{name}: declares no tasks; it needs a section `tasks:`, as in a recipe")
            found |= recipe.own_tasks
        elif name in known:
            found[name] = known[name]
        else:
            faults += unknown_names([name], (*known, GROUP), files=near_files(Path(name), shown_in=""))
    if not (found or faults):
        faults = [f"no task given; choose from {', '.join((*known, GROUP))}, or a YAML file that declares tasks"]
    if faults:
        raise UsageError("\n".join(faults))
    return tuple(found.values())


def _names_recipe(name: str) -> bool:
    """Whether ``name`` is of a recipe with tasks, not of a task; the hub's ids of the eight sets have a "/", too."""
    return ("/" in name or "." in name) and canonical_task(name) is None


class NamedRows(NamedTuple):
    """Rows to look at."""

    recipe: Recipe  # how they are shown; it lets no code of the model run
    tasks: tuple[Task, ...]
    source: str | None = None  # of the training rows of a recipe that declares no tasks; ``None`` where tasks are named


def rows_named(names: str, overrides: Sequence[str] = ()) -> NamedRows:
    """The rows that ``names`` are for: of tasks, as in `resolve_tasks`, or the training rows of a recipe without any.

    They are shown by the first of ``names`` that is a recipe, or by a recipe's defaults, with ``overrides``. A file
    that is only looked at lets no code run.
    """
    beneath = Layer("default", {"name": "tasks", "model": {"name": "smollm2-135m-instruct"}})
    every = split_names(names)
    file = next((name for name in every if _names_recipe(name)), None)
    if file is None:
        faults: list[str] = []
        layers = [beneath, *_overrides(overrides, faults)]
        return NamedRows(_checked(layers, faults, main=""), resolve_tasks(names))
    recipe, layers = _resolve(file, [*overrides, "model.trust_remote_code=false"], beneath=[beneath])
    if every == (file,) and recipe.own_tasks:
        return NamedRows(recipe, tuple(recipe.own_tasks.values()))
    has_source = depth(combine_layers(layers), ("data", "source")) == 2
    if every == (file,) and has_source:
        return NamedRows(recipe, recipe.training_tasks, recipe.data.source)
    return NamedRows(recipe, resolve_tasks(names))


def stack_recipe(layers: Sequence[tuple[str, Mapping[str, Any]]], *, name: str, folder: Path) -> Recipe:
    """The recipe `name` of several layers, the later ones over the earlier ones.

    A layer is its name in messages and its keys, as in a recipe file in `folder`.
    """
    faults: list[str] = []
    given = [_defaults(Path(name))]
    for origin, values in layers:
        given += extended(Layer(origin, dict(values)), faults, folder=folder)
    return _checked(given, faults, main=layers[-1][0])


def override_recipe(recipe: Recipe, overrides: Sequence[str], *, path: Path) -> Recipe:
    """``recipe``, which was read at ``path``, with overrides as in `load_recipe`."""
    faults: list[str] = []
    read = Layer(shown(path), recipe.model_dump(mode="json"))
    return _checked([read, *_overrides(overrides, faults)], faults, main=read.origin)


def trace_recipe(source: str | Path, overrides: Sequence[str] = ()) -> list[tuple[str, str, str]]:
    """Every value of a recipe, in declared order: its dotted key, itself in YAML on one line, and where it is from: a
    file, "override" or "default". The model may be missing."""
    recipe, layers = _resolve(source, overrides, beneath=[NO_MODEL])
    given = combine_layers(layers)
    rows = []
    for key, value in flat(recipe.model_dump(mode="json")).items():
        path = tuple(key.split("."))
        origin = origin_of(layers, path) if depth(given, path) == len(path) else "default"
        rows.append((key, render_inline(value), origin))
    return rows


def copy_recipe(name: str | Path, destination: Path) -> Path:
    """Copy a recipe, or `experiments/NAME`, into a file or folder."""
    kind = "experiment" if str(name).startswith(EXPERIMENTS) else "recipe"
    source = find_recipe(name, kind=kind)
    target = destination / source.name if os.path.isdir(destination) else destination
    copied = target.is_file() and not target.is_symlink() and target.read_bytes() == source.read_bytes()
    if os.path.lexists(target) and not copied:
        raise UsageError(f"{target}: already exists; choose another destination")
    content = source.read_bytes()
    if is_stored(source):  # which may not let code run by way of a copy either
        with suppress(ValueError):  # no YAML, by which nobody can train
            values = parse(content.decode())
            if isinstance(values, dict) and values != without_trust(values):
                content = render(without_trust(values)).encode()
    with replacing(target) as new:
        new.write_bytes(content)
    return target


def _resolve(
    source: str | Path, overrides: Sequence[str] = (), *, beneath: Sequence[Layer] = ()
) -> tuple[Recipe, list[Layer]]:
    """A recipe and its layers, over those `beneath`."""
    path = find_recipe(source)
    faults: list[str] = []
    layers = [_defaults(path), *beneath, *read_layers(path, faults), *_overrides(overrides, faults)]
    return _checked(layers, faults, main=shown(path)), layers


def _checked(layers: Sequence[Layer], faults: list[str], *, main: str) -> Recipe:
    """The recipe that the layers make, or its faults beside those of reading them."""
    try:
        recipe = Recipe.model_validate(combine_layers(layers))
    except ValidationError as error:
        faults += fault_lines(error, layers, main=main, complete=not faults)
    if faults:
        raise UsageError("\n".join(dict.fromkeys(faults)))
    return recipe


def _defaults(path: Path) -> Layer:
    """The values that merging and naming need: the recipe's name, and the mixer's kind."""
    name = re.sub(r"[^\w.-]", "-", path.stem)
    return Layer("default", {"name": name, "model": {}, "adapter": {"mixer": {"kind": AdapterSection().mixer.kind}}})


def _overrides(arguments: Sequence[str], faults: list[str]) -> list[Layer]:
    """The overrides as one layer, so that several keys of one mixer may come in any order; `extends` as in a file."""
    layers = []
    for argument in arguments:
        match = OVERRIDE.fullmatch(argument)
        if match is None or not match[1].isprintable():
            faults.append(
                f"override {argument!r}: must be key.sub=value, such as training.learning_rate=3e-4, or extends=RECIPE"
            )
            continue
        try:
            value = parse(match[2])
        except ValueError as error:
            faults.append(f"override {argument!r}: the value is not YAML: {error}")
            continue
        for key in reversed(match[1].split(".")):
            value = {key: value}
        layers.append(Layer("override", value))
    if not layers:
        return []
    return extended(Layer("override", combine_layers(layers)), faults, folder=Path())
