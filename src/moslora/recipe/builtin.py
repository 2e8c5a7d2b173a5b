"""The built-in recipes and experiments, and how a name or a path becomes a file."""

import os
from pathlib import Path

from moslora.errors import UsageError, did_you_mean, near_words

EXPERIMENTS = "experiments/"
"""Folder of the built-in experiments, which are not recipes."""

ENDINGS = (".yaml", ".yml")
"""Of the files that may be recipes."""


def find_recipe(name: str | Path, *, folder: Path = Path(), kind: str = "recipe") -> Path:
    """The file of a path, or of the name of a built-in recipe such as `methods/lora`, or of a built-in "experiment".

    A path that exists wins; ``folder`` is the base of a relative one.

    Raises:
        UsageError: neither; with the closest name among the files beside it, or else the built-in ones.
    """
    name = str(name)
    # os.path accepts any text; pathlib fails on an unknown user (~name) and on names that are too long.
    path = folder / os.path.expanduser(name)
    if os.path.isfile(path):
        if path.suffix in (".jsonl", ".csv", ".parquet"):
            raise UsageError(f"{name}: rows, not a {kind}; a recipe names them, as data.source")
        return path
    files = _builtin(kind)
    stem = name.removeprefix("recipes/").removesuffix(".yaml")
    if kind == "experiment":
        stem = stem.removeprefix(EXPERIMENTS)
    if stem in files:
        return files[stem]
    if os.path.isfile(path / "recipe.yaml"):
        raise UsageError(f"{name}: is a run, not a recipe; continue it with --resume, or use {name}/recipe.yaml")
    what = f"neither a file nor a built-in {kind}"
    if os.path.isdir(path):
        what = "a folder without a run (no recipe.yaml)"
    close = near_files(path, shown_in=os.path.dirname(name)) or _near_names(stem, [*files])
    hint = did_you_mean(close, otherwise=f"give one such as {', '.join([*files][:5])}")
    if kind == "recipe":
        hint += " (moslora recipes lists all)"
    raise UsageError(f"{printable(name)}: is {what}; {hint}")


def _near_names(name: str, files: list[str]) -> list[str]:
    """Those of ``files`` that are close to ``name``, with their folder or without it."""
    known = {}
    for file in reversed(files):  # of one name in two folders, the first
        known[file.rpartition("/")[2]] = file
    known |= {file: file for file in files}
    return list(dict.fromkeys(known[file] for file in near_words(name, known, 5)))


def near_files(path: Path, *, shown_in: str) -> list[str]:
    """YAML files beside ``path`` with a name close to its own, the closest first, each in the folder ``shown_in``."""
    try:
        names = sorted(name for name in os.listdir(path.parent) if name.endswith(ENDINGS))
    except (OSError, ValueError):  # no such folder, or no path at all
        return []
    stems = {name.rpartition(".")[0]: name for name in names}
    close = near_words(path.name.removesuffix(".yaml").removesuffix(".yml"), stems, 3)
    return [printable(os.path.join(shown_in, stems[stem])) for stem in close]


def is_builtin(path: Path, *, kind: str = "recipe") -> bool:
    return path in _builtin(kind).values()


def list_recipes(kind: str = "recipe") -> list[tuple[str, str]]:
    """Name and first comment line of every built-in recipe, the runnable ones first; or of every "experiment"."""
    return [(name, path.read_text("utf-8").partition("\n")[0].lstrip("# ")) for name, path in _builtin(kind).items()]


def _builtin(kind: str) -> dict[str, Path]:
    """Name -> file of the recipes, or of the experiments."""
    package = Path(__file__).parents[1]
    # In a wheel the recipes are inside the package; in a clone they are next to src/.
    root = next(folder for folder in (package / "recipes", package.parents[1] / "recipes") if folder.is_dir())
    if kind == "experiment":
        root /= EXPERIMENTS
    names = {path.relative_to(root).with_suffix("").as_posix(): path for path in root.rglob("*.yaml")}
    chosen = [name for name in names if not name.startswith(EXPERIMENTS)]
    return {name: names[name] for name in sorted(chosen, key=lambda name: (name.count("/"), name))}


def printable(text: str) -> str:
    """The text itself, or quoted with escapes if it is empty or would break a line of output."""
    if text and text.isprintable():
        return text
    return repr(text)
