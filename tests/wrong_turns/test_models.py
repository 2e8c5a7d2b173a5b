"""Wrong turns: base models."""

import sys
from unittest.mock import Mock

import httpx
import huggingface_hub
import pytest
import torch

from changes_kit import edit_json, edit_tensors, truncate
from cli_kit import run
from message_kit import says
from moslora.processes.devices import say_device
from training_kit import moslora

TRAIN = "train {world}/recipe.yaml --out run model.name=model"
EVAL = "eval model --tasks obqa --source {world}/data --out e"
BAD_CONFIGS = {
    "config.json": lambda path: path.write_text("{"),
    "lama": lambda path: edit_json(path, model_type="lama"),
    "num_attention_heads": lambda path: edit_json(path, num_attention_heads="x"),
    "(7)": lambda path: edit_json(path, num_attention_heads=7),
}
"""By what the message names: how config.json was spoilt."""


@pytest.mark.parametrize("named", BAD_CONFIGS)
def test_a_bad_config(refused, source, a_model, named):
    source()
    BAD_CONFIGS[named](a_model / "config.json")
    for command in (TRAIN, f"{TRAIN} --dry-run", EVAL, "import source --base model"):
        refused(command, "model", named, code=1)


def test_no_or_damaged_weights(refused, a_model):
    weights, index = a_model / "model.safetensors", a_model / "model.safetensors.index.json"
    truncate(weights)
    refused("eval model --tasks obqa", "model/model.safetensors", code=1)
    weights.unlink()
    refused("eval model --tasks obqa", "model: ", "model.safetensors.index.json")
    index.write_text("[]")
    refused("eval model --tasks obqa", str(index), code=1)
    index.write_text('{"weight_map": {"lm_head.weight": "a.safetensors"}}')
    refused("eval model --tasks obqa", "model/a.safetensors", code=1)


def test_weights_that_do_not_fit(refused, a_model):
    change = {"model.norm.weight": torch.ones(3)}
    edit_tensors(a_model / "model.safetensors", lambda tensors: tensors.update(change))
    refused(EVAL, "model.norm.weight", "(3,)", "(48,)", code=1)


@pytest.mark.slow
def test_tensors_that_are_missing_are_named_once(here, world, a_model):
    """In a process of its own, where transformers would print a table of them as well."""
    missing = ("model.layers.0.self_attn.q_proj.weight", "model.norm.weight")
    edit_tensors(a_model / "model.safetensors", lambda tensors: [tensors.pop(key) for key in missing])
    process = moslora(*TRAIN.format(world=world).split())
    _, errors = process.communicate()
    assert process.returncode == 1 and all(errors.count(key) == 1 for key in missing), errors
    assert len(errors.splitlines()) == 1


def test_a_damaged_tokenizer_and_a_quantised_model(refused, a_model):
    tokenizer = a_model / "tokenizer.json"
    whole = tokenizer.read_text()
    tokenizer.write_text("{}")
    refused(EVAL, "model.name = model", "added_tokens", code=1)
    tokenizer.write_text(whole)
    edit_json(a_model / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    refused(EVAL, "model.name = model", "model.quantization")


def test_no_such_model(refused, here, a_run):
    (here / "f").mkdir()
    refused("train {world}/recipe.yaml model.name=f", "f: ", "config.json")
    refused("eval ./none", "./none: no such folder")
    refused("eval one", "one: ", "runs/one")
    refused("eval some/model/x --tasks obqa", "some/model/x: no such folder")


@pytest.mark.parametrize(
    ("error", "code", "named"),
    [
        ("OfflineModeIsEnabled", 1, "cache"),
        ("LocalEntryNotFoundError", 1, "cache"),
        ("GatedRepoError", 1, "https://huggingface.co/some/model"),
        ("RepositoryNotFoundError", 2, "https://huggingface.co/some/model"),
        ("RevisionNotFoundError", 2, "model.revision = v9"),
    ],
)
def test_what_the_hub_answers(refused, monkeypatch, error, code, named):
    kind = getattr(huggingface_hub.errors, error)
    response = httpx.Response(404, request=httpx.Request("GET", "https://huggingface.co/some/model"))
    options = {"response": response} if issubclass(kind, huggingface_hub.errors.HfHubHTTPError) else {}
    monkeypatch.setattr("huggingface_hub.hf_hub_download", Mock(side_effect=kind("no", **options)))
    command = "train {world}/recipe.yaml model.name=some/model model.revision=v9"
    refused(command, "model.name = some/model", named, code=code)


def test_that_there_is_no_gpu_is_said_before_a_download(here, world, monkeypatch, capsys):
    offline = Mock(side_effect=huggingface_hub.errors.OfflineModeIsEnabled)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    llama = "meta-llama/Meta-Llama-3-8B"
    for words in (("train", world / "recipe.yaml", f"model.name={llama}"), ("eval", llama, "--tasks", "boolq")):
        say_device.cache_clear()
        code, out, err = run(capsys, *words)
        assert code == 1 and says(out, "device: CPU", "no GPU here", "on this CPU") and llama in err


def test_what_is_known_before_a_download(refused, monkeypatch):
    for name, result in (("snapshot_download", AssertionError("the weights")), ("hf_hub_download", ["config.json"])):
        monkeypatch.setattr(f"huggingface_hub.{name}", Mock(side_effect=result))
    refused("eval some/model --source ./none", "./none")
    refused("eval some/model --tasks boolk", "boolk", "boolq")
    refused("ask some/model --question why --option a", "1 option", "--option")


def test_no_network(refused, here, monkeypatch):
    """The hub's address is one where nobody listens; later it is lost in the middle of a download."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(here / "hf"))
    refused("eval some/model --tasks obqa", "model.name = some/model", code=1)
    refused("data fetch --source hub --tasks obqa", "datasets/allenai/openbookqa", code=1, leaves=True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", Mock(return_value="config.json"))
    for lost in (huggingface_hub.errors.LocalEntryNotFoundError("lost"), httpx.ReadError("lost")):
        monkeypatch.setattr("huggingface_hub.snapshot_download", Mock(side_effect=lost))
        refused("eval some/model --tasks obqa", "model.name = some/model", "lost", code=1)


def test_what_the_gpus_cannot_do(refused, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: False)
    monkeypatch.setattr("accelerate.Accelerator.device", torch.device("cuda"))
    refused("train {world}/recipe.yaml model.dtype=bfloat16", "model.dtype = bfloat16", "model.dtype=float16")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")

    def end(error):  # as a process of a group ends, but without ending pytest
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)

    monkeypatch.setattr("moslora.processes.group.end", end)
    refused("train {world}/recipe.yaml", "4 processes", "2 GPUs")
