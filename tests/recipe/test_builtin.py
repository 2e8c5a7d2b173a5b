"""The built-in recipes."""

import re
import tomllib
from operator import attrgetter

import pytest

from moslora.mixer_options import DenseOptions
from moslora.recipe import find_recipe, list_recipes, load_recipe
from moslora.tasks import COMMONSENSE
from recipe_kit import METHODS, MODELS, PEFT_FILES, RECIPES, ROOT, TASK_FILES


def test_all_builtin_recipes_are_known_here():
    names = [name for name, _ in list_recipes()]
    assert sorted(names) == sorted([*MODELS, "models/smollm2-135m", *METHODS, *PEFT_FILES, *TASK_FILES])
    names += [f"experiments/{name}" for name, _ in list_recipes("experiment")]
    assert {RECIPES / f"{name}.yaml" for name in names} == set(RECIPES.rglob("*.y*ml"))


@pytest.mark.parametrize("name", MODELS)
def test_recipe_with_a_model_loads_and_is_named_after_its_file(name):
    assert load_recipe(name).name == name
    assert load_recipe(RECIPES / f"{name}.yaml") == load_recipe(name)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", MODELS)
def test_every_method_extends_every_model(write, model, method):
    # The one exception: a task gate has to know each row's task.
    other_rows = []
    if method == "methods/moelora" and model.startswith("llama3-8b"):
        other_rows = ["data.source=hub"]
    recipe = load_recipe(write(both=f"extends: [{model}, {method}]\nname: {model}"), other_rows)
    mixer, others = METHODS[method]
    expected = load_recipe(model, other_rows).model_dump()
    expected["adapter"] |= {"mixer": mixer.model_dump(), **others.get("adapter", {})}
    expected["training"] |= others.get("training", {})
    assert recipe.model_dump() == expected


@pytest.mark.parametrize("model", MODELS)
def test_scaled_lora_divides_alpha_by_root_three(write, model):
    moslora = load_recipe(write(both=f"extends: [{model}, methods/moslora]")).adapter
    scaled = load_recipe(write(both=f"extends: [{model}, methods/controls/lora-scaled]")).adapter
    assert scaled.alpha * 3**0.5 == pytest.approx(moslora.alpha, rel=1e-4)


def test_every_recipe_is_described_and_listed():
    tables = "".join((RECIPES / page).read_text("utf-8") for page in ("README.md", "../docs/methods.md"))
    assert all(f"| `{name.removeprefix('methods/')}` |" in tables for name, _ in list_recipes())
    for name, purpose in (*list_recipes(), *list_recipes("experiment")):
        assert len(purpose) > 20 and not purpose.startswith("#"), name
    for name in MODELS:
        text = find_recipe(name).read_text(encoding="utf-8")
        plain, changed = re.findall(rf"^#   moslora train {re.escape(name)}(.*)$", text, re.M)
        assert plain.split() == []
        assert load_recipe(name, changed.split()) != load_recipe(name)


def test_llama3_8b_is_the_setting_of_the_paper():
    recipe = load_recipe("llama3-8b")
    adapter = recipe.adapter
    data = recipe.data
    training = recipe.training
    assert (adapter.rank, adapter.rank_out, adapter.alpha, adapter.dropout) == (16, None, 32, 0.05)
    assert set(adapter.target_modules) == {"q_proj", "k_proj", "v_proj", "up_proj", "down_proj"}
    assert adapter.mixer == DenseOptions(init="kaiming", train="learned")
    assert (data.source, data.format, data.loss_on) == ("commonsense_170k", "llm-adapters", "all")
    assert (data.max_length, data.held_out_of(170_420), data.tasks) == (256, 120, COMMONSENSE)
    assert (training.learning_rate, training.schedule, training.warmup_steps) == (3e-4, "linear", 100)
    assert (training.global_batch_size, training.epochs) == (16, 3)
    assert (training.weight_decay, training.max_grad_norm, training.betas) == (0, 1, (0.9, 0.999))
    assert (recipe.model.name, recipe.model.dtype) == ("meta-llama/Meta-Llama-3-8B-Instruct", "bfloat16")
    assert recipe.questions.source == "hub"


def test_llama3_8b_nf4_has_the_base_of_qlora():
    plain = load_recipe("llama3-8b")
    qlora = {"quantization": "nf4", "double_quantization": True, "dtype": "bfloat16", "gradient_checkpointing": True}
    changes = {"name": "llama3-8b-nf4", "model": plain.model.model_copy(update=qlora)}
    assert load_recipe("llama3-8b-nf4") == plain.model_copy(update=changes)


def test_llama3_8b_released_takes_back_what_a_recipe_can():
    recipe = load_recipe("llama3-8b-released")
    plain = load_recipe("llama3-8b")
    released = {
        "name": "llama3-8b-released",
        "model": plain.model.model_copy(update={"dtype": "float16"}),
        "data": plain.data.model_copy(update={"validation_rows": 120}),
        "training": plain.training.model_copy(update={"result": "best", "keep_checkpoints": 3}),
        "evaluation": plain.evaluation.model_copy(update={"protocol": "generate", "beams": 4}),
    }
    assert recipe == plain.model_copy(update=released)
    assert recipe.data.validation_rows == 120 and plain.training.result == "last"


def test_wheel_contains_the_recipes_and_the_tested_versions():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert config["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"] == {
        name: f"moslora/{name}" for name in ("constraints.txt", "recipes")
    }


def test_quickstart_recipe_extends_the_model_recipe():
    alone = load_recipe("models/smollm2-135m")
    quickstart = load_recipe("smollm2-135m")
    assert alone.model == quickstart.model and alone.name == quickstart.name
    assert (alone.data.rows, alone.evaluation.limit) == (None, None)
    assert (quickstart.data.rows["boolq"], quickstart.evaluation.limit) == (330, 256)
    for key in ("data.format", "data.source", "evaluation.protocol", "training.learning_rate", "training.schedule"):
        assert attrgetter(key)(alone) == attrgetter(key)(quickstart)
