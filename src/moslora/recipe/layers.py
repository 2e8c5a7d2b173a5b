"""Layers of a recipe: each value with its origin, and how layers merge."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from moslora.errors import UsageError

from .builtin import find_recipe
from .yaml_text import parse


@dataclass(frozen=True)
class Given:
    """A value and its origin, so that an error can name the file to change.

    Attributes:
        value: a scalar, a list, or a mapping from key to `Given`.
        origin: file, as shown to the user, "override" or "default".
    """

    value: Any
    origin: str

    @classmethod
    def by(cls, origin: str, value: Any) -> "Given":
        """`value` and every value inside it, all of one origin."""
        if isinstance(value, dict):
            value = {str(key): cls.by(origin, item) for key, item in value.items()}
        return cls(value, origin)

    def plain(self) -> Any:
        """The value without the origins."""
        if isinstance(self.value, dict):
            return {key: item.plain() for key, item in self.value.items()}
        return self.value

    def trail(self, path: Iterable[str]) -> list["Given"]:
        """This value and those inside it along `path`, as far as they exist."""
        found = [self]
        for key in path:
            inside = found[-1].value
            if not isinstance(inside, dict) or key not in inside:
                break
            found.append(inside[key])
        return found


def lay(layers: Iterable[Given]) -> Given:
    """Merge the layers, later ones over earlier ones: mappings merge key by key, everything else replaces.

    A mapping with another `kind` replaces the whole mapping, since the keys of one kind mean nothing to another.
    """
    return reduce(_over, layers)


def _over(under: Given, over: Given) -> Given:
    if not isinstance(under.value, dict) or not isinstance(over.value, dict):
        return over
    kinds = [given.value["kind"].plain() for given in (under, over) if "kind" in given.value]
    if len(kinds) == 2 and kinds[0] != kinds[1]:
        return over
    merged = dict(under.value)
    for key, given in over.value.items():
        merged[key] = _over(merged[key], given) if key in merged else given
    return Given(merged, over.origin)


def read_layers(path: Path, faults: list[str], *, anchored: bool = True, chain: tuple[Path, ...] = ()) -> list[Given]:
    """The files that a file extends, left to right, and then the file itself.

    Args:
        path: an existing file.
        faults: receives a line for each thing that cannot be read; the rest is still read.
        anchored: whether the files of its tasks are relative to it, and not to the working folder.
        chain: the files that extend this one, outermost first.
    """
    origin = shown(path)
    chain = (*chain, path.resolve())
    if chain[-1] in chain[:-1]:
        faults.append(f"{origin}: extends itself: {' -> '.join(map(shown, chain[chain.index(chain[-1]) :]))}")
        return []
    values = _read(path, faults)
    if anchored:
        _anchor(values.get("tasks"), path.parent)
    layers = extended(origin, values.pop("extends", []), faults, folder=path.parent, chain=chain)
    return [*layers, Given.by(origin, values)]


def extended(origin: str, names: Any, faults: list[str], *, folder: Path, chain: tuple[Path, ...] = ()) -> list[Given]:
    """The layers of the recipes that `origin` extends, one after the other; arguments as in `read_layers`."""
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        faults.append(f"{origin}: extends = {names!r}: must be a recipe's file or name, or a list of these")
        return []
    layers = []
    for name in names:
        try:
            layers += read_layers(find_recipe(name, folder=folder), faults, chain=chain)
        except UsageError as error:
            faults.append(f"{origin}: extends = {error}")
    return layers


def _anchor(tasks: Any, folder: Path) -> None:
    """Makes the local files of own tasks relative to the working folder."""
    for task in tasks.values() if isinstance(tasks, dict) else ():
        if isinstance(task, dict) and not task.get("hub"):
            for split in ("train", "test"):
                if isinstance(file := task.get(split), str) and not file.startswith("~"):
                    task[split] = os.path.normpath(folder / file)


def _read(path: Path, faults: list[str]) -> dict[Any, Any]:
    origin = shown(path)
    try:
        values = parse(path.read_text("utf-8"))
    except OSError as error:
        faults.append(f"{origin}: cannot be read: {error.strerror}")
    except ValueError as error:  # also a file that is not UTF-8
        faults.append(f"{origin}: is not YAML: {error}")
    else:
        if isinstance(values, dict):
            return values
        what = "is empty" if values is None else f"holds a {type(values).__name__} at its top level"
        faults.append(f"{origin}: {what}; a recipe is a mapping of sections, such as `model:`")
    return {}


def shown(path: Path) -> str:
    """The path as a user would type it: relative if it is below the working directory."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith(os.pardir) else relative
