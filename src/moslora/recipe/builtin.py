"""Built-in recipes and experiments, and the search for the file that a name or path stands for."""

import os
from pathlib import Path

from moslora.errors import UsageError, did_you_mean, near_words
from moslora.version import carried

EXPERIMENTS = "experiments/"
"""Folder of the built-in experiments, which are not recipes."""


def find_recipe(name: str | Path, *, folder: Path = Path(), kind: str = "recipe") -> Path:
    """Find the file of a path, or of a built-in recipe such as `methods/lora`. A path that exists wins.

    Args:
        name: path or name.
        folder: base of a relative path.
        kind: "recipe" or "experiment".

    Raises:
        UsageError: there is no such file; names the closest files beside it, or else the closest built-in ones.
    """
    name = str(name)
    # os.path accepts any text; pathlib fails on an unknown user (~name) and on names that are too long.
    path = folder / os.path.expanduser(name)
    if os.path.isfile(path):
        if path.suffix in (".jsonl", ".csv", ".tsv", ".parquet"):
            raise UsageError(f"{name}: has rows and is no {kind}; name it as data.source in a recipe")
        return path
    files = _builtin(kind)
    stem = name.removeprefix("recipes/").removesuffix(".yaml")
    if kind == "experiment":
        stem = stem.removeprefix(EXPERIMENTS)
    if stem in files:
        return files[stem]
    if os.path.isfile(path / "recipe.yaml"):
        raise UsageError(f"{name}: is a run, not a recipe; continue it with --resume, or use {name}/recipe.yaml")
    fault = f"neither a file nor a built-in {kind}"
    if os.path.isdir(path):
        fault = "a folder without a run (no recipe.yaml)"
    close = near_files(path, shown_in=os.path.dirname(name)) or _near_names(stem, [*files])
    hint = did_you_mean(close, otherwise=f"use one such as {', '.join([*files][:5])}")
    if kind == "recipe":
        hint += " (moslora recipes lists all)"
    raise UsageError(f"{printable(name)}: is {fault}; {hint}")


def _near_names(name: str, files: list[str]) -> list[str]:
    """List the built-in ``files`` whose name, with or without its folder, is close to ``name``."""
    full_names = {file.rpartition("/")[2]: file for file in reversed(files)}  # the first of equal names wins
    full_names |= {file: file for file in files}
    return list(dict.fromkeys(full_names[file] for file in near_words(name, full_names, 5)))


def near_files(path: Path, *, shown_in: str) -> list[str]:
    """List the YAML files beside ``path`` with a close name, the closest first, each as ``shown_in``/name."""
    try:
        names = {file.stem: file.name for file in sorted(path.parent.glob("*.y*ml"))}
    except (OSError, ValueError):  # not every text is a path
        return []
    close = near_words(path.name.removesuffix(".yaml").removesuffix(".yml"), names, 3)
    return [printable(os.path.join(shown_in, names[stem])) for stem in close]


def is_builtin(path: Path, *, kind: str = "recipe") -> bool:
    """Return whether ``path`` is a built-in recipe or experiment."""
    return path in _builtin(kind).values()


def list_recipes(kind: str = "recipe") -> list[tuple[str, str]]:
    """List the name and first comment line of every built-in recipe or experiment, recipes with a model first."""
    return [(name, path.read_text("utf-8").partition("\n")[0].lstrip("# ")) for name, path in _builtin(kind).items()]


def _builtin(kind: str) -> dict[str, Path]:
    """Map the names of built-in recipes, or of experiments, to their files."""
    root = carried("recipes")
    if kind == "experiment":
        root /= EXPERIMENTS
    names = {path.relative_to(root).with_suffix("").as_posix(): path for path in root.rglob("*.yaml")}
    chosen = [name for name in names if not name.startswith(EXPERIMENTS)]
    return {name: names[name] for name in sorted(chosen, key=lambda name: (name.count("/"), name))}


def printable(text: str) -> str:
    """Return the text itself, or quoted with escapes if it is empty or would break a line of output."""
    if text and text.isprintable():
        return text
    return repr(text)
