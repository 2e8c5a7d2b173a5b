"""Wrong turns: runs, adapter folders and adapters of other programs."""

import shutil
from pathlib import Path
from unittest.mock import Mock

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from changes_kit import edit_json, replace, truncate
from importing_kit import REFUSED, setting, weight
from moslora.convert.importing import import_adapter
from moslora.runs.listing import table_of_runs
from training_kit import sign


@pytest.mark.parametrize("command", ["train {} --resume", "eval {}", "merge {}", "export {}"])
def test_what_is_no_run(refused, here, a_run, command):
    (here / "f").touch()
    for folder in ("empty", "peft"):
        (here / folder).mkdir()
    (here / "peft/adapter_config.json").write_text("{}")
    refused(command.format("runs/absent"), "runs/absent", "moslora runs")
    needs = (
        "moslora import peft" if "--resume" in command else "adapter_model.safetensors"
    )  # others take one that is whole
    refused(command.format("peft"), "peft: ", needs)
    refused(command.format("empty"), "empty: ", "manifest.json")
    refused(command.format("f"), "f: ")


def test_an_option_of_another_protocol(refused, a_run):
    refused("eval runs/one --beams 4", "--beams 4", "--protocol generate")


def test_what_a_run_lacks(refused, a_run):
    refused("merge .", "manifest.json", "moslora runs")
    refused("train runs/one/adapter --resume", "runs/one/adapter", "recipe.yaml")
    (a_run / "recipe.yaml").rename("kept.yaml")
    refused("train runs/one --resume", "runs/one: ", "recipe.yaml")
    Path("kept.yaml").rename(a_run / "recipe.yaml")
    for path in (a_run / "adapter", *(a_run / "checkpoints").iterdir()):
        truncate(path / "recipe.yaml")
    refused("train runs/one --resume", "runs/one", "--out", code=1)
    for name in ("checkpoints", "adapter"):
        shutil.rmtree(a_run / name)
    for command in ("merge runs/one", "eval runs/one", "reproduce runs/one"):
        refused(command, "runs/one: ", "moslora train runs/one --resume")
    refused("train runs/one --resume", "runs/one: ", "adapter/ is gone", "--out")
    assert [row[3:5] for row in table_of_runs(a_run)[1:]] == [["21/21", "finished, no adapter/"]]


@pytest.mark.parametrize(
    ("command", "name"), [("merge", "adapter.safetensors"), ("eval", "recipe.yaml"), ("export", "manifest.json")]
)
def test_a_damaged_file(refused, a_run, command, name):
    truncate(a_run / "adapter" / name)
    refused(f"{command} runs/one", f"runs/one/adapter/{name}", code=1)


def test_tensors_that_are_not_the_recipes(refused, a_run):
    q_proj, v_proj = (f"model.layers.0.self_attn.{name}.lora_a" for name in ("q_proj", "v_proj"))
    weights = load_file(a_run / "adapter/adapter.safetensors")
    del weights[q_proj]
    weights |= {v_proj: torch.ones(2, 48), "more.lora_a": torch.ones(2)}
    save_file(weights, a_run / "adapter/adapter.safetensors")
    sign(a_run / "adapter")
    names = ("adapter/adapter.safetensors", q_proj, v_proj, "(2, 48)", "(4, 48)", "more.lora_a")
    for command in ("eval", "merge", "export"):
        refused(f"{command} runs/one", *names, code=1)


def test_a_base_that_is_gone(refused, world, a_run):
    replace(a_run / "adapter/recipe.yaml", str(world / "model"), "./gone")
    sign(a_run / "adapter")
    refused("merge runs/one", "model.name = ./gone")


@pytest.mark.parametrize("name", REFUSED)
def test_an_import_that_is_not_understood(refused, source, name):
    alter, named = REFUSED[name]
    source(alter)
    refused("import source", named)


def test_an_import_without_settings_or_numbers(refused, source):
    settings = source(weight("lora_AB", lambda m: m * float("nan"))) / "adapter_config.json"
    refused("import source", "nan", "1e-05", code=1)
    refused("import source --out source", "source: ", "adapter_config.json")
    settings.write_text("{")
    refused("import source", "source/adapter_config.json", code=1)
    settings.unlink()
    refused("import source", "source: ", "adapter_config.json")


def test_an_import_over_a_base_that_cannot_be_used(refused, source, a_model, monkeypatch):
    source(setting(base_model_name_or_path="some/model"))
    edit_json(a_model / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    refused("import source --base model", "model.name = model: ")
    lost = huggingface_hub.errors.LocalEntryNotFoundError("lost")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", Mock(side_effect=lost))
    refused("import source", "some/model", code=1)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", Mock(side_effect=OSError(28, "No space left on device")))
    refused("import source --base other/model", "No space left on device", code=1)


def test_an_import_cannot_be_trained_further(refused, source):
    import_adapter(source(), out=Path("runs/source"))
    for command in ("runs/source", "runs/source/recipe.yaml --out runs/source"):
        refused(f"train {command} --resume", "runs/source: ")
