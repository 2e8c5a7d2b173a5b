"""The JSON schema of recipe files: what it lets pass and what not, as the library jsonschema reads it."""

from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from benchmarks.recipes import reference
from moslora.errors import UsageError
from moslora.recipe import Recipe, find_recipe, list_recipes, load_recipe, recipe_schema
from moslora.recipe.yaml_text import parse


def valid(value):
    return Draft202012Validator(recipe_schema()).is_valid(value)


@pytest.mark.parametrize("name", [name for name, _ in list_recipes()])
def test_every_builtin_recipe_is_valid(name):
    assert valid(parse(find_recipe(name).read_text(encoding="utf-8")))


def test_a_resolved_recipe_is_valid():
    assert valid(parse(load_recipe("llama3-8b").to_yaml()))


FILES = {
    "several bases": ("extends: [llama3-8b, methods/lora]\ntraining: {learning_rate: 1e-4}", True),
    "mixer without its kind": ("adapter: {mixer: {init: orthogonal}}", True),
    "tasks in a word": ("data: {tasks: 'boolq, piqa'}\nevaluation: {tasks: commonsense}", True),
    "rows by task": ("data: {rows: {boolq: 5}}", True),
    "modules by expression": ("adapter: {target_modules: '.*q_proj'}", True),
    "null where it may be": ("training: {epochs: null, max_steps: 5}", True),
    "wrong section": ("trainin: {}", False),
    "key of no mixer": ("adapter: {mixer: {inti: orthogonal}}", False),
    "key of another mixer": ("adapter: {mixer: {kind: identity, init: orthogonal}}", False),
    "tasks of its own": ("tasks: {mine: {train: a.jsonl, options: [a, b]}}\ndata: {tasks: [mine]}", True),
    "wrong key of a task": ("tasks: {mine: {train: a.jsonl, quesion: q}}", False),
    "wrong type": ("training: {epochs: many}", False),
    "out of range": ("adapter: {rank: 0}", False),
    "too few": ("training: {betas: [0.9]}", False),
    "unknown word": ("model: {dtype: bf16}", False),
    "base that is no name": ("extends: {a: b}", False),
}


@pytest.mark.parametrize("file", FILES)
def test_schema_and_loader_agree_on_single_files(file, tmp_path):
    text, expected = FILES[file]
    assert valid(parse(text)) == expected
    path = tmp_path / "any.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        load_recipe(path, ["model.name=x"])
        loaded = True
    except UsageError:
        loaded = False
    assert loaded == expected


def test_every_field_of_every_model_carries_its_documentation():
    schema = recipe_schema()
    assert list(schema["properties"]) == ["extends", *Recipe.model_fields]
    for model in [schema, *schema["$defs"].values()]:
        assert model["description"] and "required" not in model
        for name, field in model["properties"].items():
            assert field.get("description") or "$ref" in field, name


def test_the_reference_page_is_up_to_date():
    """`make docs` writes it; every field and every kind of mixer has its row."""
    docs = Path(__file__).parents[2] / "docs"
    page = (docs / "recipes.md").read_text(encoding="utf-8")
    assert page == reference(), "docs/recipes.md is not what the models say: run `make docs`"
    schema = recipe_schema()
    for model in [schema, *schema["$defs"].values()]:
        for name in model["properties"]:
            assert f"| `{name}` |" in page or name in ("extends", "kind"), name
