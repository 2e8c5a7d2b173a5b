"""Copies of recipes."""

import pytest

from moslora.errors import UsageError
from moslora.recipe import copy_recipe, find_recipe, load_recipe
from recipe_kit import METHODS


@pytest.mark.parametrize("name", ["llama3-8b", "methods/lora"])
def test_copy_without_extends_is_the_file_itself(tmp_path, name):
    copy = copy_recipe(name, tmp_path / "new" / "mine.yaml")
    assert copy == tmp_path / "new" / "mine.yaml"
    assert copy.read_text() == find_recipe(name).read_text()


def test_copy_with_extends_stands_alone(write, tmp_path):
    copy = copy_recipe("methods/controls/moslora-frozen", tmp_path)
    assert copy == tmp_path / "moslora-frozen.yaml"
    text = copy.read_text()
    assert text.startswith(find_recipe("methods/controls/moslora-frozen").read_text().partition("\n")[0])
    assert "extends" not in text
    mixer, _ = METHODS["methods/controls/moslora-frozen"]
    assert load_recipe(write(a=f"extends: [llama3-8b, {copy}]")).adapter.mixer == mixer


def test_copy_overwrites_nothing(tmp_path):
    path = tmp_path / "llama3-8b.yaml"
    path.write_text("mine")
    for destination in (path, tmp_path):
        with pytest.raises(UsageError, match=r"llama3-8b\.yaml: "):
            copy_recipe("llama3-8b", destination)
    assert path.read_text() == "mine"
