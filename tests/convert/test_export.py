"""The exported adapter in stock PEFT and transformers, and as llama.cpp's converter writes it."""

import json
from importlib.util import find_spec

import peft
import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from benchmarks.checks import serving
from card_kit import Card
from cli_kit import run as cli
from message_kit import in_order, says
from moslora.adapters import describe_task
from moslora.base.load import load_base
from moslora.convert.export import export_peft
from moslora.convert.merge import merge
from moslora.errors import UsageError
from moslora.runs.adapted_model import load_adapted
from moslora.runs.adapter_folder import open_adapter
from moslora.training import train_recipe
from reference import token_batch

MIXERS = {
    "dense": (["adapter.mixer.init=orthogonal"], 4),
    "butterfly": (["adapter.mixer.kind=butterfly"], 2),
    "rectangular": (["adapter.rank_out=6"], 6),
    "diagonal": (["adapter.mixer.kind=diagonal", "training.rank_budget.target_rank=2"], 4),
    "pissa": (["adapter.start=pissa", "adapter.mixer.init=orthogonal"], 8),
    "svd": (["adapter.start=svd", "adapter.trains=mixer", "adapter.mixer.init=near-zero"], 4),
    "b-alone": (["adapter.trains=b", "adapter.mixer.kind=identity"], 4),
    "dora": (["adapter.dora=true"], 4),
    "dora-pissa": (
        [
            *("adapter.dora=true", "adapter.start=pissa", "adapter.mixer.init=orthogonal"),
            *("adapter.scaling=rslora", "adapter.alpha=4"),
        ],
        8,
    ),
}


FAST = ("dense", "rectangular", "b-alone", "dora-pissa")
"""One of each kind of fold; the others are slow only because they are many."""


@pytest.mark.parametrize("mixer", [pytest.param(m, marks=() if m in FAST else pytest.mark.slow) for m in MIXERS])
def test_stock_peft_and_the_merged_model_compute_the_same(recipe, tmp_path, monkeypatch, mixer):
    overrides, rank = MIXERS[mixer]
    run, out = tmp_path / "run", tmp_path / "peft"
    train_recipe(recipe("training.epochs=1", *overrides), out=run)
    with monkeypatch.context() as patched:
        patched.setattr("moslora.runs.adapted_model.read_base", None)  # no weight of the base is read
        export_peft(run / "adapter", out=out)
    folder = open_adapter(run / "adapter")
    ours = load_adapted(folder)
    base = load_base(folder.recipe.model)
    ids = token_batch(base)
    without = base(ids).logits
    theirs = peft.PeftModel.from_pretrained(base, out).eval()
    models = [theirs]
    # transformers 5.24 leaves out DoRA's magnitudes, also those that PEFT itself has written, and needs PEFT 0.19.
    if "dora" not in mixer and find_spec("peft.utils.transformers_weight_conversion"):
        models.append(load_base(folder.recipe.model))
        models[-1].load_adapter(str(out))
    with torch.inference_mode():
        expected = ours(ids).logits
        for model in models:
            torch.testing.assert_close(model.eval()(ids).logits, expected, rtol=1e-5, atol=1e-5)
    assert (expected - without).abs().max() > 0.1
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"] / config["r"]) == (rank, 2.0)
    assert config["target_modules"] == ["down_proj", "q_proj", "v_proj"]
    parts = {key.removesuffix(".weight").rpartition(".")[2] for key in load_file(out / "adapter_model.safetensors")}
    assert parts == {"lora_A", "lora_B", *(["lora_magnitude_vector"] if "dora" in mixer else [])}
    assert not any("mixer" in key for key in config)
    proof = merge(run / "adapter", out=tmp_path / "merged")
    assert proof.mean_error < 1e-4 and proof.effect > 0.05


@pytest.mark.parametrize("mixer", ["token-gate", "gate-inside"])
def test_a_token_gate_cannot_be_folded(recipe, tmp_path, mixer):
    run = tmp_path / "run"
    train_recipe(recipe("training.max_steps=3", f"adapter.mixer.kind={mixer}"), out=run)
    for write in (export_peft, merge):
        with pytest.raises(UsageError) as caught:
            write(run / "adapter", out=tmp_path / "out")
        (line,) = str(caught.value).splitlines()
        assert line.startswith(f"{run / 'adapter'}: ") and f"its mixer, {mixer}, depends on the token" in line
        assert not (tmp_path / "out").exists()


def test_a_task_gate_becomes_a_folder_for_each_task(recipe, trained, tmp_path, capsys):
    run = tmp_path / "run"
    train_recipe(recipe("training.epochs=1", "adapter.mixer.kind=task-gate"), out=run)
    folder = open_adapter(run / "adapter")
    ours = load_adapted(folder)
    ids = token_batch(ours)
    seen = []
    for task in ("boolq", "obqa"):
        for command, name in (("merge", "merged"), ("export", "peft")):
            assert cli(capsys, command, run, "--task", task)[0] == 0
            assert f"its gate fixed at task `{task}`" in Card(run / f"{name}-{task}").fields["method"]
        describe_task(ours, task)
        seen.append(ours(ids).logits)
        theirs = peft.PeftModel.from_pretrained(load_base(folder.recipe.model), run / f"peft-{task}").eval()
        for model in (theirs, AutoModelForCausalLM.from_pretrained(run / f"merged-{task}", dtype=torch.float32).eval()):
            torch.testing.assert_close(model(ids).logits, seen[-1], rtol=1e-5, atol=1e-5)
    assert (seen[0] - seen[1]).abs().max() > 1e-4
    for write in (export_peft, merge):
        with pytest.raises(UsageError, match="--task"):
            write(folder.path, out=tmp_path / "x")
        with pytest.raises(UsageError, match=in_order("boolq,obqa", "--task", "boolq, ")):
            write(folder.path, out=tmp_path / "x", task="boolq,obqa")
        with pytest.raises(UsageError, match="--task boolq"):
            write(trained / "adapter", out=tmp_path / "x", task="boolq")
    assert not (run / "merged").exists() and not (run / "peft").exists() and not (tmp_path / "x").exists()


def test_layers_that_share_a_name_with_others_are_named_in_full(recipe, tmp_path):
    run = tmp_path / "run"
    train_recipe(recipe("training.epochs=1", r"adapter.target_modules='.*layers\.1.*q_proj'"), out=run)
    export_peft(run / "adapter", out=tmp_path / "peft")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["model.layers.1.self_attn.q_proj"]
    base = load_base(open_adapter(run / "adapter").recipe.model)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "peft")
    found = [name for name, module in model.named_modules() if isinstance(module, peft.tuners.lora.Linear)]
    assert found == ["base_model.model.model.layers.1.self_attn.q_proj"]


@pytest.mark.slow
def test_llama_cpps_converter_writes_the_folded_weights(recipe, tmp_path, capsys):
    converters = serving.unpacked() / "source"
    run = tmp_path / "run"
    train_recipe(recipe("training.epochs=1", "adapter.rank_out=6"), out=run)
    assert cli(capsys, "export", run, "--format", "gguf", "--llama-cpp", converters)[0] == 0
    written = GGUFReader(run / "gguf" / "adapter.gguf")
    tensors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in written.tensors}
    config = json.loads((run / "gguf" / "adapter_config.json").read_text())
    assert written.fields["adapter.lora.alpha"].contents() == config["lora_alpha"]
    expected = load_file(run / "gguf" / "adapter_model.safetensors")
    assert len(tensors) == len(expected)
    for part in ("a", "b"):
        weight = expected[f"base_model.model.model.layers.1.mlp.down_proj.lora_{part.upper()}.weight"]
        assert torch.equal(tensors[f"blk.1.ffn_down.weight.lora_{part}"], weight)


def test_a_converter_that_is_missing_or_fails_leaves_nothing(trained, tmp_path, capsys, monkeypatch):
    script = tmp_path / "convert_lora_to_gguf.py"
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    command = ("export", trained, "--format", "gguf", "--out", tmp_path / "gguf")
    code, _, err = cli(capsys, *command)
    assert code == 2 and says(err, script.name, tmp_path, "git clone", "--llama-cpp")
    script.write_text("raise NotImplementedError('no such model')", encoding="utf-8")
    code, _, err = cli(capsys, *command)
    assert code == 1 and says(err, script, "no such model")
    assert not (tmp_path / "gguf").exists()
