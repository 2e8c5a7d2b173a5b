"""Copies of recipes."""

import pytest

from moslora.errors import UsageError
from moslora.recipe import copy_recipe, find_recipe, load_recipe
from recipe_kit import METHODS, MODELS


@pytest.mark.parametrize("name", ["llama3-8b", "methods/lora"])
def test_copy_is_the_file_itself(tmp_path, name):
    copy = copy_recipe(name, tmp_path / "new" / "mine.yaml")
    assert copy == tmp_path / "new" / "mine.yaml"
    assert copy.read_text() == find_recipe(name).read_text()


@pytest.mark.parametrize("name", [*MODELS, *METHODS])
def test_copy_says_the_same_in_another_folder(write, tmp_path, name):
    (tmp_path / "other").mkdir()
    copy = copy_recipe(name, tmp_path / "other")
    assert copy == tmp_path / "other" / find_recipe(name).name
    over = "name: a\nextends: [{}, {}]\ndata: {{source: hub}}".format
    original, copied = write(one=over("llama3-8b", name)), write(two=over("llama3-8b", copy))
    assert load_recipe(copied) == load_recipe(original)


def test_copy_overwrites_nothing(tmp_path):
    path = tmp_path / "llama3-8b.yaml"
    path.write_text("mine")
    for destination in (path, tmp_path):
        with pytest.raises(UsageError, match=r"llama3-8b\.yaml: "):
            copy_recipe("llama3-8b", destination)
    assert path.read_text() == "mine"
