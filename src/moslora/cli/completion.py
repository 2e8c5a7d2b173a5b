"""Shell completion of recipes, runs and tasks, without loading torch.

Typer offers the words that begin with the incomplete one; if there are none, the shell offers files.
"""

from moslora.runs import RUNS


def recipes_and_runs() -> list[tuple[str, str]]:
    """Built-in recipes with their descriptions, and runs, which contain a recipe."""
    from moslora.recipe import list_recipes

    return list_recipes() + runs()


def experiments() -> list[tuple[str, str]]:
    """Built-in experiments with their descriptions."""
    from moslora.recipe import list_recipes

    return list_recipes("experiment")


def runs() -> list[tuple[str, str]]:
    """Runs in the default folder, newest first."""
    recipes = sorted(RUNS.glob("*/recipe.yaml"), key=lambda path: -path.stat().st_mtime)
    return [(str(path.parent), "a run") for path in recipes]


def tasks(incomplete: str) -> list[str]:
    """Names of tasks; after a comma, names that are not in the list yet."""
    from moslora.tasks import BUILT_IN

    before, comma, _ = incomplete.rpartition(",")
    return [before + comma + name for name in BUILT_IN if name not in before.split(",")]
