"""Which tasks a task gate was trained on: recorded with the run, and asked wherever one task is meant."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from message_kit import says
from moslora.adapters import adapter_state_dict
from moslora.base.adapted import with_adapters
from moslora.base.load import load_base
from moslora.convert.merge import merge
from moslora.errors import UsageError
from moslora.evaluation.ask import ask
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.target import open_target
from moslora.recipe import load_recipe
from moslora.runs.adapter_folder import open_adapter
from moslora.training import train_recipe

GATE = ("adapter.mixer.kind=task-gate", "training.epochs=1")
ASKED = {"question": "what did the old fox sing about", "options": ["rain", "two stone birds"]}


@pytest.fixture(scope="module")
def two_of_three(world, tmp_path_factory):
    """A run on two of the world's tasks, which evaluates all three."""
    out = tmp_path_factory.mktemp("gate") / "run"
    train_recipe(load_recipe(world / "recipe.yaml", [*GATE, "data.tasks=[obqa, boolq]"]), out=out)
    return out


def test_recorded_tasks_are_those_whose_embeddings_changed(two_of_three):
    folder = open_adapter(two_of_three / "adapter")
    recorded = folder.manifest["data"]["tasks"]
    assert sum(recorded.values()) == folder.manifest["trained_rows"] == 54
    fresh = load_base(folder.recipe.model)
    with_adapters(fresh, folder.recipe)
    end = load_file(two_of_three / "adapter" / "adapter.safetensors")
    for key, start in adapter_state_dict(fresh).items():
        if key.endswith("embedding"):
            moved = (end[key] != start).any(1).nonzero().flatten().tolist()
            assert [folder.recipe.data.tasks[number] for number in moved] == list(recorded) == ["obqa", "boolq"]
    assert json.loads((two_of_three / "run.json").read_text())["data"]["tasks"] == recorded


def test_ask_refuses_untrained_tasks_unless_of_the_base(two_of_three):
    gated = open_target(str(two_of_three))
    with pytest.raises(UsageError, match=r"never trained on arc_easy"):
        ask(gated, **ASKED)
    assert ask(gated, **ASKED, task="obqa").prediction.task == "obqa"
    assert ask(open_target(str(two_of_three), base=True), **ASKED).prediction.task == "arc_easy"


def test_eval_notes_untrained_tasks(two_of_three, tmp_path, capsys):
    target = open_target(str(two_of_three))
    results, _ = evaluate_target(target, limit=2, out=tmp_path / "e")
    assert list(results.tasks) == ["boolq", "arc_easy", "obqa"]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "gate" in line]
    assert says(line, "note: ", "trained on obqa, boolq only", "for arc_easy it is random")
    for changed in (open_target(str(two_of_three), base=True), target):
        tasks = ("obqa",) if changed is target else None
        evaluate_target(changed, tasks=tasks, limit=2, out=tmp_path / str(changed.base) / "x")
        assert not [line for line in capsys.readouterr().out.splitlines() if "gate" in line]


def test_rows_without_a_set_train_no_task(recipe, tmp_path):
    """A mixed file whose rows of obqa do not name it: they could be of any of four sets."""
    source = tmp_path / "mixed.json"
    rows = json.loads((Path(recipe().data.source) / "openbookqa" / "train.json").read_text())
    source.write_text(json.dumps(rows))
    run = tmp_path / "run"
    overrides = (f"data.source={source}", "data.tasks=obqa", "data.validation_rows=4")
    train_recipe(recipe(*GATE, *overrides), out=run)
    with pytest.raises(UsageError, match="never trained on obqa"):
        merge(run / "adapter", out=tmp_path / "merged", task="obqa")
