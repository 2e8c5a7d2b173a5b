"""``moslora recipes``: list, show and copy recipes."""

import os
from pathlib import Path
from typing import Annotated

import typer

from moslora.cli.options import Overrides, RecipeName
from moslora.cli.table import print_described

app = typer.Typer(
    help="List, show and copy recipes.\n\nWithout a command, lists the built-in ones.", invoke_without_command=True
)


@app.callback()
def recipes(context: typer.Context) -> None:
    """List the built-in recipes, unless a command follows."""
    from moslora.recipe import list_recipes

    if context.invoked_subcommand is None:
        print_described(list_recipes())


@app.command("copy")
def copy(
    name: RecipeName, destination: Annotated[Path, typer.Argument(help="File or folder to write.")] = Path(".")
) -> None:
    """Copy a recipe into a file of your own."""
    from moslora.recipe import copy_recipe

    print(f"written to {copy_recipe(_recipe_file(name), destination)}")


@app.command("show")
def show_recipe(name: RecipeName, overrides: Overrides = None) -> None:
    """Print every value of a recipe and where it comes from."""
    from moslora.recipe import trace_recipe

    rows = trace_recipe(_recipe_file(name), overrides or ())
    width_of_keys = max(len(key) for key, _, _ in rows)
    longest_value = max(len(value) for _, value, _ in rows)
    width_of_values = min(longest_value, 36)
    for key, value, origin in rows:
        print(f"{key:{width_of_keys}}  {value:{width_of_values}}  {origin}")


@app.command("schema")
def schema() -> None:
    """Print the JSON schema of recipe files, for editors."""
    import json

    from moslora.recipe import recipe_schema

    print(json.dumps(recipe_schema(), indent=2))


def _recipe_file(name: str) -> str:
    """Return the recipe file of a run, or `name` itself."""
    inside = os.path.join(name, "recipe.yaml")
    return inside if os.path.isfile(inside) else name
