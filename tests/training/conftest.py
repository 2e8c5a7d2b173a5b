"""Finished runs that several files read."""

from collections.abc import Callable

import pytest

from methods_kit import BUDGET, Done, finish, recipe_of
from moslora.recipe import load_recipe

Finished = Callable[[str], Done]


@pytest.fixture(scope="session")
def finished(world, tmp_path_factory):
    """The run of a method over the small world with all its checkpoints, made once; read only."""
    found = {}

    def make(method):
        if method not in found:
            folder = tmp_path_factory.mktemp("method")
            found[method] = finish(recipe_of(method, world, folder, "training.keep_checkpoints=99"), folder / "run")
        return found[method]

    return make


@pytest.fixture(scope="session")
def with_budget(world, tmp_path_factory):
    """A finished run with a rank budget, and all its checkpoints; read only."""
    every = ("training.checkpoint_every=1", "training.keep_checkpoints=99")
    recipe = load_recipe(world / "recipe.yaml", (*BUDGET, *every))
    return finish(recipe, tmp_path_factory.mktemp("budget") / "run")
