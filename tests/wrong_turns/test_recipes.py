"""Wrong turns: the command line and recipes. What a recipe may not say is in `tests/recipe`."""

from unittest.mock import Mock

import pytest

from changes_kit import edit_json, replace
from training_kit import sign

TYPED = (
    ("train none.yaml", "none.yaml"),
    ("train lama3.2", "llama3.2-3b, llama3.2-1b", "moslora recipes"),
    ("train methods/lora", "methods/lora.yaml", "model.name"),
    ("train llama3-8b seed=-1 training.epochs=no", "seed = -1", "training.epochs = False"),
    ("train {world}/recipe.yaml adapter.target_modules=[lm_head]", "adapter.target_modules"),
    ("train {world}/recipe.yaml adapter.target_modules=[q_prj]", "q_prj", "down_proj, gate_proj, k_proj"),
    ("train {world}/recipe.yaml adapter.target_modules=q_proj,v_proj", "q_proj,v_proj", "[q_proj, v_proj]"),
    ("train {world}/recipe.yaml data.source=./none", "./none"),
    ("train {world}/recipe.yaml data.validation_rows=500", "data.validation_rows = 500", "90"),
    ("train {world}/recipe.yaml data.max_length=2", "data.max_length=2", "data.max_length=7"),
    ("plan {world}/recipe.yaml --probe training.max_steps=5 training.epochs=null", "--probe", "6", "5"),
    ("plan llama3-8b --gpu-memory=80TB", "such as 80GB"),
    ("plan llama3-8b --gpu-memory=-1GB", "such as 80GB"),
    ("data show obqa --source commonsense_170k --model {world}/model", "commonsense_170k", "obqa"),
    ("data show obqa --source {world}/data --model {world}/model --row 99", "--row 99", "29"),
    ("eval", "runs/", "moslora train RECIPE"),
    ("eval {run} --dtype bf16", "--dtype", "bf16"),
    ("eval {run} --out {run}", "adapter, checkpoints"),
    ("eval {run} --protocol cloze --format label", "--protocol cloze", "--format label"),
    ("eval {run} --tasks ", "boolq"),
    ("eval {run} --tasks piqa", "piqa/test.json"),
    ("eval {run} --source ", "source ''"),
    ("eval {run} --source {world}/data/openbookqa/train.json", "openbookqa/train.json", "boolq"),
    ("compare {run} none", "run: ", "moslora eval"),
    ("compare {run} --contrast one", "--contrast one"),
    ("merge {run} --onto dequantized", "--onto dequantized", "--onto original"),
    ("merge {world}/model", "model: "),
    ("import me/adapter", "me/adapter", "hf download me/adapter"),
    ("import {run}", "run: ", "adapter_model.safetensors"),
    ("runs none", "none: ", "moslora train RECIPE"),
    ("report none", "none: ", "moslora runs"),
    ("report {world}/recipe.yaml", "recipe.yaml: no such folder"),
    ("report {world}/modle", "modle: ", "model?"),
    ("compare {world}/recip.yaml", "recip.yaml: ", "recipe.yaml?"),
    ("report {run} --evaluation x --out page", "no evaluation x", "moslora eval"),
    ("experiment mixer-ablatoin", "mixer-ablatoin", "mixer-ablation"),
)


@pytest.mark.parametrize("turn", TYPED, ids=lambda turn: turn[0])
def test_what_is_typed(refused, turn):
    refused(*turn)


@pytest.mark.parametrize(
    "command",
    [
        "train cap.yaml",
        "plan cap.yaml",
        "recipes show cap.yaml",
        "experiment cap",
        "data show cap",
        "eval {run} --tasks cap",
    ],
)
def test_a_mistyped_file_names_the_one_beside_it(refused, here, command):
    (here / "caps.yaml").touch()
    assert "c3a" not in refused(command, "did you mean caps.yaml?")


def test_a_file_that_cannot_be_read(refused, here, monkeypatch):
    (here / "f").mkdir()
    (here / "r.yaml").write_text("extends: f")
    refused("train r.yaml", "r.yaml", "extends = f")
    refused("train f", "f: ", "recipe.yaml", "moslora recipes")
    denied = PermissionError(13, "Permission denied", "r.yaml")
    monkeypatch.setattr("moslora.recipe.layers.parse", Mock(side_effect=denied))
    refused("train r.yaml", "r.yaml", "Permission denied")


def test_a_run_in_the_place_of_a_recipe(refused, a_run):
    refused("train runs/one", "runs/one", "--resume", "runs/one/recipe.yaml")


def test_a_run_of_a_newer_version(refused, a_run):
    """Its recipe has a key that this version does not know."""
    for folder in (a_run, a_run / "adapter"):
        replace(folder / "recipe.yaml", "adapter:\n", "adapter:\n  gate: soft\n")
    edit_json(a_run / "run.json", versions={"moslora": "9.0"})
    sign(a_run / "adapter", moslora="9.0")
    refused("eval runs/one", "runs/one/adapter/recipe.yaml", "moslora 9.0", "adapter.gate = 'soft'")
