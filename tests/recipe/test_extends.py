"""Recipes that extend others, overrides, and files that cannot be read."""

import pytest

from moslora.errors import UsageError
from moslora.mixer_options import ButterflyOptions, DenseOptions
from moslora.recipe import find_recipe, load_recipe
from recipe_kit import RECIPES, faults


def test_extends_merges_left_to_right(write):
    path = write(
        left="model: {name: left}\ntraining: {epochs: 1, max_steps: 1, warmup_steps: 1, log_every: 1, betas: [0, 0]}",
        right="training: {max_steps: 2, warmup_steps: 2, log_every: 2, betas: [0.3, 0.4]}",
        top="extends: [left.yaml, right.yaml]\ntraining: {warmup_steps: 3, log_every: 3}",
    )
    training = load_recipe(path, ["training.log_every=4"]).training
    assert (training.max_steps, training.warmup_steps, training.log_every) == (2, 3, 4)
    assert training.betas == (0.3, 0.4)  # a list replaces


@pytest.mark.parametrize(
    ("top", "overrides", "epochs", "max_steps"),
    [
        ("{}", [], 1, None),
        ("{max_steps: 40}", [], None, 40),
        ("{max_steps: 40}", ["training.epochs=2"], 2, None),
        ("{max_steps: 40, epochs: 2}", [], 2, 40),  # together: the first to be reached
        ("{}", ["training.max_steps=40", "training.epochs=2"], 2, 40),
    ],
)
def test_last_set_end_of_a_run_wins(write, top, overrides, epochs, max_steps):
    path = write(base="model: {name: x}\ntraining: {epochs: 1}", top=f"extends: base.yaml\ntraining: {top}")
    recipe = load_recipe(path, overrides)
    assert (recipe.training.epochs, recipe.training.max_steps) == (epochs, max_steps)
    assert load_recipe(write(run=recipe.to_yaml())) == recipe


def test_extends_is_relative_to_the_file_and_nests(write, tmp_path):
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "sub" / "base.yaml").write_text("model: {name: base}")
    (tmp_path / "sub" / "deep" / "middle.yaml").write_text("extends: ../base.yaml\nseed: 5")
    recipe = load_recipe(write(top="extends: sub/deep/middle.yaml"))
    assert (recipe.model.name, recipe.seed, recipe.name) == ("base", 5, "top")


@pytest.mark.parametrize(
    ("files", "chain"),
    [
        ({"a": "extends: a.yaml"}, "a.yaml -> a.yaml"),
        ({"c": "extends: b.yaml", "b": "extends: c.yaml", "a": "extends: b.yaml"}, "b.yaml -> c.yaml -> b.yaml"),
    ],
)
def test_cycle_is_named(write, files, chain):
    (line,) = faults(write(**files))
    assert line.startswith(f"{chain.split(' ')[0]}: ") and line.endswith(f" {chain}")


DENSE = "{kind: dense, init: orthogonal, train: frozen}"


@pytest.mark.parametrize(
    ("top", "override", "mixer"),
    [
        ("{kind: butterfly}", "seed=0", ButterflyOptions()),
        ("{kind: butterfly}", "adapter.mixer.kind=dense", DenseOptions(init="kaiming", train="learned")),
        ("{kind: dense, train: folded}", "seed=0", DenseOptions(init="orthogonal", train="folded")),
        ("{}", "adapter.mixer.init=identity", DenseOptions(init="identity", train="frozen")),
    ],
)
def test_other_kind_of_mixer_replaces_and_same_kind_merges(write, top, override, mixer):
    base = f"model: {{name: x}}\nadapter: {{rank: 8, mixer: {DENSE}}}"
    adapter = load_recipe(write(base=base, top=f"extends: base.yaml\nadapter: {{mixer: {top}}}"), [override]).adapter
    assert (adapter.rank, adapter.mixer) == (8, mixer)


@pytest.mark.parametrize("order", [1, -1])
def test_overrides_of_one_mixer_come_in_any_order(write, order):
    overrides = ["adapter.mixer.kind=butterfly", "adapter.mixer.blocks=4"][::order]
    assert load_recipe(write(a="model: {name: x}"), overrides).adapter.mixer == ButterflyOptions(blocks=4)


@pytest.mark.parametrize(
    ("text", "line", "fix"),
    [
        ("tasks:\n  mine:\n    train: a\n   question: b", 4, "indent the line like its neighbours"),
        ("seed: 1\n  name: a", 2, "indent the line like its neighbours, or quote a text with a colon"),
        ("tasks:\n  mine:\n    cloze: The answer: x", 3, "quote a text with a colon"),
        ("model:\n\tname: x", 2, "indent with spaces, not tabs"),
        ("tasks:\n  mine:\n    question: {{premise}}", 3, "quote a text that begins with {{"),
    ],
)
def test_yaml_mistakes_are_answered_with_a_fix(write, text, line, fix):
    (fault,) = faults(write(a=text))
    assert fault.startswith(f"a.yaml: is not YAML: line {line}, column ")
    assert fault.endswith(fix)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {name: x\nseed: 1", "is not YAML: line 2, column 5: "),
        ("seed: 1\nmodel: {name: x}\nseed: 2", "is not YAML: line 3, column 1: the key 'seed'"),
        ("a: !!python/name:os.system", "is not YAML: line 1, column 4: "),
        ("[" * 5000, "is not YAML: "),
        ("a: &a [*a]", "is not YAML: line 1, column 4: "),
        (b"name: \xff\xfe", "is not YAML: 'utf-8' codec"),
        ("", "must be a mapping"),
        ("extends: [3]", "extends = [3]: "),
        ("extends: llama3-9b", "extends = llama3-9b: "),
    ],
)
def test_unreadable_file_is_the_only_fault(write, text, message):
    (line,) = faults(write(a=text))
    assert line.startswith(f"a.yaml: {message}")


def test_rows_in_place_of_a_recipe_are_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"messages": []}\n{"messages": []}\n')
    with pytest.raises(UsageError, match=r"has rows and is no recipe.*data\.source"):
        load_recipe(tmp_path / "rows.jsonl")


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
        ("caps", "caps.yaml"),
        ("./cap.yml", "./caps.yaml"),
        ("sub/sum.yaml", "sub/sums.yml"),
    ],
)
def test_unknown_recipe_names_the_closest(write, tmp_path, name, meant):
    write(caps="")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/sums.yml").touch()
    (line,) = faults(name)
    assert line.startswith(f"{name}: ") and f"did you mean {meant}" in line and line.count(",") <= 4
    (line,) = faults("none/cap.yaml")
    assert "caps.yaml" not in line, "it is in another folder"


def test_path_wins_over_name(write, tmp_path):
    assert find_recipe("methods/lora") == RECIPES / "methods" / "lora.yaml"
    (tmp_path / "llama3-8b").write_text("model: {name: mine}")
    write(a="")
    assert load_recipe("llama3-8b").model.name == "mine"


def test_name_of_the_run_comes_from_the_file(write, tmp_path):
    (tmp_path / "my run 2.yaml").write_text("extends: smollm2-135m")
    assert load_recipe(tmp_path / "my run 2.yaml").name == "my-run-2"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs", "override 'training.epochs': "),
        ("training..epochs=3", "override 'training..epochs=3': "),
        ("data.tasks=[boolq", "override 'data.tasks=[boolq': the value is not YAML: line 1, column 7: "),
        ("training.epoch=3", "override: training.epoch = 3: unknown key; did you mean epochs?"),
    ],
)
def test_wrong_override(write, override, message):
    (line,) = faults(write(a="model: {name: x}"), override)
    assert line.startswith(message)


def test_extends_override_is_between_file_and_other_overrides(write):
    file = load_recipe(write(mine="extends: [smollm2-135m, methods/adalora]\nadapter: {rank: 32}"))
    given = ["adapter.rank=32", "extends=[methods/adalora]", "name=mine"]
    assert load_recipe("smollm2-135m", given) == file
    (line,) = faults("smollm2-135m", "methods/dora")
    assert "extends=" in line


def test_override_may_hold_an_equals_sign_and_null(write):
    recipe = load_recipe(
        write(a="model: {name: x, revision: y}"), ["adapter.target_modules=a=b", "model.revision=null"]
    )
    assert (recipe.adapter.target_modules, recipe.model.revision) == ("a=b", None)
