"""``moslora recipes``: list, show and copy recipes."""

import os
from pathlib import Path
from typing import Annotated

import typer

from moslora.cli.options import ALL_TO_THE_RECIPE, Overrides, RecipeName
from moslora.cli.table import print_described

app = typer.Typer(help="List, show and copy recipes.", invoke_without_command=True)


@app.callback()
def recipes(context: typer.Context) -> None:
    """List the built-in recipes; the commands show and copy one."""
    from moslora.recipe import list_recipes

    if context.invoked_subcommand is None:
        print_described(list_recipes())


@app.command("copy")
def copy(
    name: RecipeName, destination: Annotated[Path, typer.Argument(help="File or folder to write.")] = Path(".")
) -> None:
    """Copy a recipe, to edit it."""
    from moslora.recipe import copy_recipe

    print(f"written to {copy_recipe(_recipe_file(name), destination)}")


@app.command("show", context_settings=ALL_TO_THE_RECIPE)
def show_recipe(name: RecipeName, overrides: Overrides = None) -> None:
    """Print every value of a recipe and the file it comes from."""
    from moslora.recipe import trace_recipe

    rows = trace_recipe(file := _recipe_file(name), overrides or (), written=file != name)
    keys, values = (max(len(row[column]) for row in rows) for column in (0, 1))
    for key, value, origin in rows:
        print(f"{key:{keys}}  {value:{min(values, 36)}}  {origin}")


@app.command("schema")
def schema() -> None:
    """Print the JSON schema of recipe files, for editors."""
    import json

    from moslora.recipe import recipe_schema

    print(json.dumps(recipe_schema(), indent=2, ensure_ascii=False))


def _recipe_file(name: str) -> str:
    """The recipe file of a run, or `name` itself. os.path accepts any text, unlike `Path.is_file`."""
    inside = os.path.join(name, "recipe.yaml")
    return inside if os.path.isfile(inside) else name
