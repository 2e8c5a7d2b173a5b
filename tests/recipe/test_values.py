"""Values of every field, and keys that are unknown."""

from pathlib import Path

import pytest

from message_kit import says
from moslora.errors import UsageError
from moslora.recipe import load_recipe, resolve_tasks
from moslora.tasks import COMMONSENSE
from recipe_kit import faults


@pytest.mark.parametrize(
    ("text", "value"), [("3e-4", 3e-4), ("1e5", 1e5), ("1E+2", 100.0), (".5e-2", 0.005), ("3.e-1", 0.3), ("2", 2.0)]
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
        ("training.learning_rate='3e-4'", "training.learning_rate = '3e-4': "),
        ("training.learning_rate=.inf", "training.learning_rate = inf: "),
        ("training.max_steps=2.0", "training.max_steps = 2.0: "),
        ("training.warmup_steps=1.5", "training.warmup_steps = 1.5: "),
        ("training.betas=[0.9, 1]", "training.betas.1 = 1: "),
        ("model.name=''", "model.name = '': "),
        ("name=../x", "name = '../x': "),
        ("adapter.target_modules=[q_proj, 3]", "adapter.target_modules.1 = 3: "),
        ("adapter.mixer.kind=moe", "adapter.mixer.kind = 'moe': "),
        ("training.rank_budget={final_share: 0.2}", "training.rank_budget.target_rank: "),
        ("training.max_steps=99999999999999999999", "training.max_steps = 99999999999999999999: "),
        ("adapter.mixer=butterfly", "adapter.mixer = 'butterfly': "),
        ("data.rows={boolq: 0}", "data.rows.boolq = 0: "),
        ("data.source=weel", "data.source = 'weel': "),
        ("data.tasks=[]", "data.tasks = []: "),
        ("data.tasks=[boolq, hellaswagg]", "data.tasks = ['boolq', 'hellaswagg']: unknown task 'hellaswagg'"),
        ("adapter.target_modules=(q_proj", "adapter.target_modules = '(q_proj': "),
        (
            "evaluation.protocol=rank",
            "evaluation.protocol = 'rank': must be 'choice', 'cloze' or 'generate'",
        ),
        ("evaluation.skip=100", "evaluation.skip = 100: must be a multiple of 64"),
    ],
)
def test_wrong_value(write, override, wanted):
    (line,) = faults(write(a="model: {name: x}"), override)
    assert line.startswith(f"override: {wanted}")


@pytest.mark.parametrize("path", ["./data", "data.json", "a/b", "/abs", "data/"])
def test_source_may_be_a_path(write, path):
    assert load_recipe(write(a=f"model: {{name: x}}\ndata: {{source: {path}}}")).data.source == path


def test_source_beside_the_recipe_wins(write, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    path = tmp_path / write(a="model: {name: x}\ndata: {source: rows.jsonl}")
    assert load_recipe(path).data.source == "rows.jsonl"
    (path.parent / "rows.jsonl").touch()
    assert Path(load_recipe(path).data.source).samefile(path.parent / "rows.jsonl")
    assert load_recipe(path, ["data.source=./rows.jsonl"]).data.source == "./rows.jsonl"


def test_tasks_are_resolved(write):
    recipe = load_recipe(write(a="model: {name: x}\ndata: {tasks: [commonsense]}\nevaluation: {tasks: 'boolq,obqa'}"))
    assert (recipe.data.tasks, recipe.evaluation.tasks) == (COMMONSENSE, ("boolq", "obqa"))


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
    ("name", "here"),
    [("openbookqa", "obqa"), ("ARC-E", "arc_easy"), ("Rowan/hellaswag", "hellaswag"), ("social_i_qa", "siqa")],
)
def test_other_names_of_sets_are_answered_with_ours(write, name, here):
    (line,) = faults(write(a=f"model: {{name: x}}\ndata: {{tasks: {name}}}"))
    assert says(line, "unknown task", name) and line.endswith(here)
    with pytest.raises(UsageError, match=f"{here}$"):
        resolve_tasks(name)


@pytest.mark.parametrize(("kind", "meant"), [("moslora", "dense"), ("lora", "identity"), ("kroneker", "kronecker")])
def test_wrong_mixer_names_the_closest(write, kind, meant):
    (line,) = faults(write(a="model: {name: x}"), f"adapter.mixer.kind={kind}")
    assert line.endswith(f"'task-gate'; did you mean {meant}?")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("extend: smollm2-135m", "extend = 'smollm2-135m': unknown key; did you mean extends?"),
        ("1: 2", "1 = 2: unknown key"),
        (f"foo: {'y' * 500}", f"foo = '{'y' * 78}…: unknown key"),
    ],
)
def test_unknown_keys(write, text, line):
    (found,) = faults(write(a=f"model: {{name: x}}\n{text}"))
    assert found.startswith(f"a.yaml: {line}")
