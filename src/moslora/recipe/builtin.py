"""The built-in recipes and experiments, and how a name or a path becomes a file."""

import difflib
import os
from pathlib import Path

from moslora.errors import UsageError

EXPERIMENTS = "experiments/"
"""Where the built-in experiments are; they are no recipes."""


def find_recipe(name: str | Path, *, folder: Path = Path()) -> Path:
    """The file of a path, or of the name of a built-in recipe such as `llama3-8b` or `methods/lora`.

    Args:
        name: path or name; a path that exists wins.
        folder: what a relative path is relative to.

    Raises:
        UsageError: neither; with the closest name.
    """
    return _find(str(name), "", kind="recipe", folder=folder)


def find_experiment(name: str) -> Path:
    """The file of a path, or of the name of a built-in experiment, as `find_recipe`."""
    return _find(name, EXPERIMENTS, kind="experiment")


def _find(name: str, under: str, *, kind: str, folder: Path = Path()) -> Path:
    # os.path accepts any text; pathlib fails on an unknown user (~name) and on names that are too long.
    path = folder / os.path.expanduser(name)
    if os.path.isfile(path):
        return path
    files, stem = _builtin(under), name.removeprefix("recipes/").removeprefix(under).removesuffix(".yaml")
    if stem in files:
        return files[stem]
    if os.path.isfile(path / "recipe.yaml"):
        raise UsageError(f"{name}: is a run, not a recipe; continue it with --resume, or use {name}/recipe.yaml")
    known = {file.rpartition("/")[2]: file for file in files} | {file: file for file in files}
    close = difflib.get_close_matches(stem, known, n=1)
    hint = f"did you mean {known[close[0]]}?" if close else f"built-in {kind}s are {', '.join(files)}"
    raise UsageError(f"{printable(name)}: is neither a file nor a built-in {kind}; {hint}")


def list_experiments() -> list[tuple[str, str]]:
    """Name and first comment line of every built-in experiment."""
    return _described(_builtin(EXPERIMENTS))


def printable(text: str) -> str:
    """The text itself, or quoted with escapes if it is empty or would break a line of output."""
    return text if text and text.isprintable() else repr(text)


def list_recipes() -> list[tuple[str, str]]:
    """Name and first comment line of every built-in recipe, the runnable ones first."""
    return _described(_builtin())


def _described(files: dict[str, Path]) -> list[tuple[str, str]]:
    return [(name, path.read_text("utf-8").partition("\n")[0].lstrip("# ")) for name, path in files.items()]


def _builtin(folder: str = "") -> dict[str, Path]:
    """The recipes, or what lies in ``folder``, by name."""
    package = Path(__file__).parents[1]
    # In a wheel the recipes are inside the package; in a clone they are next to src/.
    root = next(folder for folder in (package / "recipes", package.parents[1] / "recipes") if folder.is_dir())
    names = {path.relative_to(root).with_suffix("").as_posix(): path for path in root.rglob("*.yaml")}
    chosen = {
        name.removeprefix(folder): path
        for name, path in names.items()
        if name.startswith(EXPERIMENTS) == (folder == EXPERIMENTS)
    }
    return dict(sorted(chosen.items(), key=lambda item: (item[0].count("/"), item[0])))
