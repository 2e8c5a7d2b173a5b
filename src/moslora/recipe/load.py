"""Loading: from files and overrides to one checked recipe; also its origins, a copy of its file, and tasks by name."""

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

NO_MODEL = Layer("missing: to train, extend a recipe with a model", {"model": {"name": "none"}})
"""Layer below a recipe that is only shown, or read for its tasks."""

OVERRIDE = re.compile(r"([^.=]+(?:\.[^.=]+){0,9})=(.*)", re.DOTALL)
"""Pattern of an override, `key.sub=value`. No key of a recipe has more than four parts."""


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
    """Find the tasks that a command line names.

    Args:
        names: tasks among the built-in ones and ``own``, ``commonsense`` for all eight sets, or recipes with a section
            ``tasks`` (a file, or a built-in one such as ``tasks/copa``) for all of theirs.
        own: tasks of a recipe, by name.

    Raises:
        UsageError: unknown names, one line each with the closest known name; no name at all; a file's faults.
    """
    by_name = {**BUILT_IN, **(own or {})}
    tasks: dict[str, Task] = {}
    faults = []
    for name in split_names(names):
        if _is_recipe_name(name):
            recipe, _ = _resolve(name, beneath=[NO_MODEL])
            if not recipe.tasks:
                faults.append(f"{name}: declares no tasks; it needs a section `tasks:`, as in a recipe")
            tasks |= recipe.own_tasks
        elif name in by_name:
            tasks[name] = by_name[name]
        else:
            faults += unknown_names([name], (*by_name, GROUP), files=near_files(Path(name), shown_in=""))
    if not (tasks or faults):
        faults = [f"no task given; choose from {', '.join((*by_name, GROUP))}, or a YAML file that declares tasks"]
    if faults:
        raise UsageError("\n".join(faults))
    return tuple(tasks.values())


def _is_recipe_name(name: str) -> bool:
    """Return whether ``name`` is a recipe's and not a task's; the hub's ids of the eight sets also have a "/"."""
    return ("/" in name or "." in name) and canonical_task(name) is None


class NamedRows(NamedTuple):
    """Rows that a command line names, to show or audit, and the recipe by which they are shown."""

    recipe: Recipe  # says how to show the rows; it lets no code of the model run
    tasks: tuple[Task, ...]
    source: str | None = None  # of the training rows, for a recipe without own tasks


def rows_named(names: str, overrides: Sequence[str] = ()) -> NamedRows:
    """Find the rows of tasks, as in `resolve_tasks`, or the training rows of a recipe without own tasks.

    The first of ``names`` that is a recipe gives the prompt format and the model; without one the defaults do.
    ``overrides`` apply either way. Nothing can allow code of the model to run.
    """
    beneath = Layer("default", {"name": "tasks", "model": {"name": "smollm2-135m-instruct"}})
    overrides = [*overrides, "model.trust_remote_code=false"]
    parts = split_names(names)
    file = next((name for name in parts if _is_recipe_name(name)), None)
    if file is None:
        faults: list[str] = []
        layers = [beneath, *_overrides(overrides, faults)]
        return NamedRows(_checked(layers, faults, main=""), resolve_tasks(names))
    recipe, layers = _resolve(file, overrides, beneath=[beneath])
    if parts == (file,) and recipe.own_tasks:
        return NamedRows(recipe, tuple(recipe.own_tasks.values()))
    has_source = depth(combine_layers(layers), ("data", "source")) == 2
    if parts == (file,) and has_source:
        return NamedRows(recipe, recipe.training_tasks, recipe.data.source)
    return NamedRows(recipe, resolve_tasks(names))


def stack_recipe(layers: Sequence[tuple[str, Mapping[str, Any]]], *, name: str, folder: Path) -> Recipe:
    """Build the recipe `name` from several layers, the later ones over the earlier ones.

    Args:
        layers: the name of each layer in messages, and its keys, as in a recipe file.
        name: of the recipe.
        folder: base of relative paths.
    """
    faults: list[str] = []
    given = [_defaults(Path(name))]
    for origin, values in layers:
        given += extended(Layer(origin, dict(values)), faults, folder=folder)
    return _checked(given, faults, main=layers[-1][0])


def override_recipe(recipe: Recipe, overrides: Sequence[str], *, path: Path) -> Recipe:
    """Apply overrides, as in `load_recipe`, to a ``recipe`` that was read at ``path``."""
    faults: list[str] = []
    read = Layer(shown(path), recipe.model_dump(mode="json"))
    return _checked([read, *_overrides(overrides, faults)], faults, main=read.origin)


def trace_recipe(source: str | Path, overrides: Sequence[str] = ()) -> list[tuple[str, str, str]]:
    """List every value of a recipe, in declared order: dotted key, value in YAML on one line, and origin.

    The origin is a file, "override" or "default". A recipe that names no model is traced, too.
    """
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
    if is_stored(source):  # a copy must not get the user's trust
        with suppress(ValueError):  # not YAML, so no command can use it
            values = parse(content.decode())
            if isinstance(values, dict) and values != without_trust(values):
                content = render(without_trust(values)).encode()
    with replacing(target) as new:
        new.write_bytes(content)
    return target


def _resolve(
    source: str | Path, overrides: Sequence[str] = (), *, beneath: Sequence[Layer] = ()
) -> tuple[Recipe, list[Layer]]:
    """Load a recipe and its layers, over the layers `beneath`."""
    path = find_recipe(source)
    faults: list[str] = []
    layers = [_defaults(path), *beneath, *read_layers(path, faults), *_overrides(overrides, faults)]
    return _checked(layers, faults, main=shown(path)), layers


def _checked(layers: Sequence[Layer], faults: list[str], *, main: str) -> Recipe:
    """Build the recipe of the layers, or refuse its faults together with the ``faults`` of reading the layers."""
    try:
        recipe = Recipe.model_validate(combine_layers(layers))
    except ValidationError as error:
        faults += fault_lines(error, layers, main=main, complete=not faults)
    if faults:
        raise UsageError("\n".join(dict.fromkeys(faults)))
    return recipe


def _defaults(path: Path) -> Layer:
    """Layer with the defaults that merging and naming need: the recipe's name, and the mixer's kind."""
    name = re.sub(r"[^\w.-]", "-", path.stem)
    return Layer("default", {"name": name, "model": {}, "adapter": {"mixer": {"kind": AdapterSection().mixer.kind}}})


def _overrides(arguments: Sequence[str], faults: list[str]) -> list[Layer]:
    """Parse the overrides, which may extend recipes, into one layer, so that keys of a mixer may come in any order."""
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
