"""Layers of a recipe: the values of each file and of the overrides, their merging, and the origin of a value."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from moslora.errors import UsageError

from .builtin import find_recipe
from .yaml_text import parse

KeyPath = tuple[str, ...]


class Layer(NamedTuple):
    """Values that one file or the command line sets."""

    origin: str  # file, as shown to the user, "override" or "default"; errors name it as the place to change
    values: dict[str, Any]  # as in a recipe file


def combine_layers(layers: Iterable[Layer]) -> dict[str, Any]:
    """Merge the layers, later ones over earlier ones: mappings merge key by key, everything else replaces.

    A mapping with another `kind` or `peft_type` replaces the whole mapping, since the keys of one kind mean nothing to
    another. `adapter.peft` replaces the fields of moslora's own adapter, and `adapter.mixer` replaces `adapter.peft`.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _over_recipe(merged, layer.values)
    return merged


def _over_recipe(under: dict[str, Any], over: dict[str, Any]) -> Any:
    adapter_under = under.get("adapter")
    adapter_over = over.get("adapter")
    if isinstance(adapter_under, dict) and isinstance(adapter_over, dict):
        replaced: set[str] = set()
        if "peft" in adapter_over:
            replaced = {*adapter_under} - {"peft", "target_modules", "continue_from"}
        elif "mixer" in adapter_over:
            replaced = {"peft"}
        under = under | {"adapter": {key: value for key, value in adapter_under.items() if key not in replaced}}
    return _over(under, over)


def _over(under: Any, over: Any) -> Any:
    if not isinstance(under, dict) or not isinstance(over, dict):
        return over
    if any(tag in under and tag in over and under[tag] != over[tag] for tag in ("kind", "peft_type")):
        return over
    return under | {key: _over(under.get(key), value) for key, value in over.items()}


def depth(values: Any, path: KeyPath) -> int:
    """Number of keys of `path` that exist, each inside the one before."""
    for count, key in enumerate(path):
        if not isinstance(values, dict) or key not in values:
            return count
        values = values[key]
    return len(path)


def origin_of(layers: Sequence[Layer], path: KeyPath) -> str:
    """Origin of the last layer that sets the value at `path`, or at the longest part of `path` that exists."""
    exists = depth(combine_layers(layers), path)
    return next(layer.origin for layer in reversed(layers) if depth(layer.values, path) >= exists)


def read_layers(path: Path, faults: list[str], *, chain: tuple[Path, ...] = ()) -> list[Layer]:
    """Read the files that a file extends, left to right, and then the file itself.

    Args:
        path: the file.
        faults: receives a line for each fault; everything else is still read.
        chain: the files that extend this one, outermost first.
    """
    origin = shown(path)
    file = path.resolve()
    if file in chain:
        circle = (*chain[chain.index(file) :], file)
        faults.append(f"{origin}: extends itself: {' -> '.join(map(shown, circle))}")
        return []
    chain = (*chain, file)
    values: Any = {}
    try:
        values = parse(path.read_text("utf-8"))
    except OSError as error:
        faults.append(f"{origin}: cannot be read: {error.strerror}")
    except ValueError as error:  # also a file that is not UTF-8
        faults.append(f"{origin}: is not YAML: {error}")
    if not isinstance(values, dict):
        faults.append(f"{origin}: must be a mapping of sections, such as `model:`")
        values = {}
    if is_stored(path):
        values = without_trust(values)
    _anchor(values, path.parent)
    return extended(Layer(origin, values), faults, folder=path.parent, chain=chain)


def extended(layer: Layer, faults: list[str], *, folder: Path, chain: tuple[Path, ...] = ()) -> list[Layer]:
    """Read the layers of the recipes that `layer` extends, and add the layer itself; arguments as in `read_layers`."""
    names = layer.values.get("extends", [])
    own = Layer(layer.origin, {key: value for key, value in layer.values.items() if key != "extends"})
    training = own.values.get("training")
    if isinstance(training, dict) and (training.get("epochs") is None) != (training.get("max_steps") is None):
        # `epochs` replaces `max_steps` of the layers below, and `max_steps` replaces `epochs`.
        own.values["training"] = {"epochs": None, "max_steps": None} | training
    if isinstance(names, str):
        names = [names]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        faults.append(f"{layer.origin}: extends = {names!r}: must be a recipe's file or name, or a list of these")
        return [own]
    layers = []
    for name in names:
        try:
            layers += read_layers(find_recipe(name, folder=folder), faults, chain=chain)
        except UsageError as error:
            faults.append(f"{layer.origin}: extends = {error}")
    return [*layers, own]


def is_stored(path: Path) -> bool:
    """Return whether moslora wrote the file, into a run or beside weights. Such a file may come from somebody else."""
    path = path.resolve()
    beside = any(os.path.isfile(path.with_name(name)) for name in ("run.json", "manifest.json"))
    return path.name == "moslora.yaml" or (path.name == "recipe.yaml" and beside)


def without_trust(values: dict[str, Any]) -> dict[str, Any]:
    """Return ``values`` without the permission to run the base's code, which only the user's own files may give."""
    model = values.get("model")
    if not isinstance(model, dict) or "trust_remote_code" not in model:
        return values
    return {**values, "model": {**model, "trust_remote_code": False}}


def _anchor(values: dict[str, Any], folder: Path) -> None:
    """Make paths that are relative to ``folder`` relative to the working folder.

    These are the files of own tasks, and the source of the rows if it exists in ``folder``, beside the recipe.
    """
    data = values.get("data")
    if isinstance(data, dict) and isinstance(data.get("source"), str):
        source = data["source"]
        if re.search("[./]", source) and os.path.exists(folder / source):
            data["source"] = os.path.normpath(folder / source)
    tasks = values.get("tasks")
    if not isinstance(tasks, dict):
        return
    for task in tasks.values():
        if not isinstance(task, dict) or task.get("hub") or task.get("wheel"):
            continue
        for split in ("train", "test", "texts"):
            file = task.get(split)
            if isinstance(file, str) and not file.startswith("~"):
                task[split] = os.path.normpath(folder / file)


def shown(path: Path) -> str:
    """Write the path as a user would: relative if it is below the working folder."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith(os.pardir) else relative
