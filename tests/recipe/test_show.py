"""`moslora recipes show`: every value, and where it comes from."""

import pytest

from cli_kit import run
from moslora.recipe import load_recipe, trace_recipe
from moslora.recipe.recipe import flat
from moslora.recipe.yaml_text import parse


def test_every_value_names_the_layer_that_gave_it(write):
    """The origins against a reading by hand of three layers and the overrides."""
    path = write(
        base="model: {name: x, dtype: float32}\nadapter: {rank: 8, mixer: {init: normal}}",
        middle="extends: base.yaml\nadapter: {rank: 4}\ndata: {rows: {boolq: 5}}",
        mine="extends: middle.yaml\ntraining: {betas: [0.5, 0.9]}\nmodel: {dtype: float16}",
    )
    rows = trace_recipe(path, ["training.learning_rate=1e-4", "data.rows.boolq=7"])
    given = {key: (value, origin) for key, value, origin in rows if origin != "default"}
    assert given == {
        "model.name": ("x", "base.yaml"),
        "model.dtype": ("float16", "mine.yaml"),
        "adapter.rank": ("4", "middle.yaml"),
        "adapter.mixer.init": ("normal", "base.yaml"),
        "data.rows.boolq": ("7", "override"),
        "training.learning_rate": ("0.0001", "override"),
        "training.betas": ("[0.5, 0.9]", "mine.yaml"),
    }


@pytest.mark.parametrize("name", ["llama3-8b", "smollm2-135m"])
def test_values_are_the_recipes_own_in_declared_order(name):
    rows = [(key, parse(value)) for key, value, _ in trace_recipe(name)]
    assert rows == list(flat(parse(load_recipe(name).to_yaml())).items())


def test_a_method_is_shown_without_a_model(capsys):
    """With everything that it has over a recipe that gives one, which is then the only origin besides."""
    code, out, err = run(capsys, "recipes", "show", "methods/dora")
    assert (code, err) == (0, "")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert lines["model.name"].split(maxsplit=2)[1:] == ["none", "missing: to train, extend a recipe with a model"]
    assert [key for key, line in lines.items() if "methods/dora.yaml" in line] == ["adapter.dora", "adapter.mixer.kind"]
