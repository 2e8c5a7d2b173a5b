"""`moslora verify --for vllm`: which modules of an adapter vLLM applies, and the names that `export --for vllm` writes.

The expected outcomes are those of vLLM 0.32.0, which `test_table_says_what_vllm_does` asks where it is installed.
"""

import json
from importlib.util import find_spec

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from changes_kit import edit_json
from cli_kit import run
from families_kit import CONFIGS, SMALL
from message_kit import says
from moslora.base.twin import small_config
from moslora.training import train_recipe
from moslora.verify import vllm

KINDS = {
    "llama": ("LlamaForCausalLM", "all"),
    "gemma3": ("Gemma3ForConditionalGeneration", "all"),
    "qwen3_5": ("Qwen3_5ForConditionalGeneration", "none"),  # the causal model's names are not those of the files
    "gpt2": ("GPT2LMHeadModel", "refused"),  # without LoRA in vLLM
}
"""Family -> class in its ``config.json``, and what vLLM does with an adapter that has the names of the causal model."""


def made(family, folder):
    """A small base of ``family``, as its files say; its causal model."""
    torch.manual_seed(0)
    config = small_config(CONFIG_MAPPING[family](**CONFIGS.get(family, {})), **SMALL.get(family, {}))
    config.get_text_config(decoder=True).vocab_size = 1024  # of the tokenizer, and more
    model = AutoModelForCausalLM.from_config(config)
    config.architectures = [KINDS[family][0]]
    model.save_pretrained(folder)
    config.save_pretrained(folder)
    return model


def peft_of(model, base, folder, **settings):
    """An adapter that PEFT wrote, of the layers of the last components ``target_modules``."""
    settings = {"target_modules": ["down_proj", "c_attn"], "r": 4, "init_lora_weights": False, **settings}
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    adapted.save_pretrained(folder)
    edit_json(folder / "adapter_config.json", base_model_name_or_path=str(base))
    return folder


def outcome(capsys, folder):
    """What `verify` says of vLLM: all, none, some or refused; the exit code is 0 for all alone."""
    capsys.readouterr()  # of a training
    code, out, errors = run(capsys, "verify", folder, "--for", "vllm", "--json")
    found = json.loads(out)
    assert (code == 0) == found["passed"], errors
    if found["refusal"]:
        return "refused"
    return "all" if found["passed"] else "some" if found["applied"] else "none"


@pytest.mark.parametrize("family", KINDS)
def test_names_of_the_causal_model(family, tmp_path, capsys):
    base, folder = tmp_path / "base", tmp_path / "peft"
    peft_of(made(family, base), base, folder)
    assert outcome(capsys, folder) == KINDS[family][1]


def renamed(folder, old, new):
    """The adapter with other names of its modules."""
    weights = folder / "adapter_model.safetensors"
    save_file({key.replace(old, new): tensor for key, tensor in load_file(weights).items()}, weights)


@pytest.mark.parametrize(
    ("family", "old", "new", "expected"),
    [
        ("llama", "model.layers", "layers", "none"),
        ("llama", "layers.1.", "layers.2.", "some"),  # the base has two
        ("llama", "layers.1.mlp.down_proj", "layers.1.mlp.k", "some"),
        ("llama", "lora_A.weight", "lora_magnitude_vector", "refused"),
        ("gemma3", "language_model.layers", "layers", "none"),
        ("gemma3", "model.language_model.layers", "language_model.model.layers", "all"),  # of older files
        ("qwen3_5", "model.layers", "model.language_model.layers", "all"),
    ],
)
def test_other_names(family, old, new, expected, tmp_path, capsys):
    base, folder = tmp_path / "base", tmp_path / "peft"
    peft_of(made(family, base), base, folder)
    renamed(folder, old, new)
    assert outcome(capsys, folder) == expected


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"bias": "all"}])
def test_settings_that_vllm_refuses(settings, tmp_path, capsys):
    base, folder = tmp_path / "base", tmp_path / "peft"
    peft_of(made("llama", base), base, folder, **settings)
    assert outcome(capsys, folder) == "refused"


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3_5"])
def test_export_for_vllm_writes_names_that_it_applies(family, recipe, world, tmp_path, capsys):
    """The same tensors as PEFT's names have."""
    base, own = tmp_path / "base", tmp_path / "run"
    made(family, base)
    AutoTokenizer.from_pretrained(world / "model").save_pretrained(base)
    train_recipe(recipe(f"model.name={base}", "adapter.target_modules=[down_proj]", "training.max_steps=2"), out=own)
    assert outcome(capsys, own) == KINDS[family][1]
    for name, words, expected in (("usual", (), KINDS[family][1]), ("served", ("--for", "vllm"), "all")):
        assert run(capsys, "export", own, *words, "--out", tmp_path / name)[0] == 0
        assert outcome(capsys, tmp_path / name) == expected
    usual, served = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("usual", "served"))
    for theirs, ours in zip(sorted(served), sorted(usual), strict=True):
        torch.testing.assert_close(served[theirs], usual[ours], rtol=0, atol=0)


def test_bad_input_is_one_line(tmp_path, trained, capsys):
    for words, named in (
        (("verify", trained), ("--server", "--for")),
        (("verify", trained, "--for", "vllm", "--server", "http://localhost:9"), ("--server", "--for")),
        (("verify", tmp_path, "--for", "vllm"), (str(tmp_path),)),
    ):
        code, _, errors = run(capsys, *words)
        assert code == 2 and errors.count("\n") == 1 and says(errors, *named), errors
    base, folder = tmp_path / "base", tmp_path / "peft"
    peft_of(made("llama", base), base, folder)
    edit_json(base / "config.json", architectures=["NewForCausalLM"])
    code, _, errors = run(capsys, "verify", folder, "--for", "vllm")
    assert code == 1 and errors.count("\n") == 1 and says(errors, "NewForCausalLM", "vLLM"), errors


@pytest.mark.skipif(not find_spec("vllm"), reason="vLLM is not installed")
@pytest.mark.parametrize("family", KINDS)
def test_table_says_what_vllm_does(family, tmp_path, monkeypatch):
    base, folder = tmp_path / "base", tmp_path / "peft"
    peft_of(made(family, base), base, folder)
    asked = vllm.applied_modules(folder)
    monkeypatch.setattr(vllm, "find_spec", lambda name: None)
    looked_up = vllm.applied_modules(folder)
    assert looked_up.applied == asked.applied and bool(looked_up.refusal) == bool(asked.refusal)
    assert AutoConfig.from_pretrained(base).architectures == [asked.architecture]
