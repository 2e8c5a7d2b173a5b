"""The merged folder: an ordinary model with W + s · B · M · A inside, and nothing of ours."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from card_kit import Card
from cli_kit import run as cli
from message_kit import says
from moslora.adapters import AdapterLinear, LoraPair, fold
from moslora.convert import export
from moslora.convert import merge as merging
from moslora.convert.export import export_peft
from moslora.convert.merge import merge
from moslora.convert.proof import weight_sums
from moslora.errors import MosloraError
from moslora.runs.adapted_model import load_adapted
from moslora.runs.adapter_folder import open_adapter
from moslora.training import train_recipe
from training_kit import weights_of
from world_kit import loads_of_models


def test_every_weight_is_the_base_plus_s_b_m_a(trained, world, tmp_path, monkeypatch):
    """Float64 from the files alone; s = α/r = 2. The base and the written model are loaded once."""
    loaded = loads_of_models(monkeypatch)
    proof = merge(trained / "adapter", out=tmp_path / "merged")
    assert len(loaded) == 2 and loaded[0] == str(world / "model")
    adapter = load_file(trained / "adapter" / "adapter.safetensors")
    merged = weights_of(tmp_path / "merged")
    base = weights_of(world / "model")
    assert merged.keys() == base.keys()
    ratios = []
    for key, weight in base.items():
        name = key.removesuffix(".weight")
        expected = weight.double()
        if f"{name}.lora_a" in adapter:
            a = adapter[f"{name}.lora_a"].double()
            m = adapter[f"{name}.mixer.weight"].double()
            b = adapter[f"{name}.lora_b"].double()
            expected = expected + 2 * b @ m @ a
            ratios.append((expected - weight).norm() / weight.double().norm())
        torch.testing.assert_close(merged[key].double(), expected, rtol=1e-6, atol=1e-6, msg=key)
    assert len(ratios) == 6 and min(ratios) > 0.05
    assert proof.mean_error < 1e-5 and proof.effect > 0.1


def test_stock_transformers_loads_the_merged_folder(trained, world, tmp_path):
    out = tmp_path / "merged"
    merge(trained / "adapter", out=out)
    stock = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in out.iterdir()} == stock | {"README.md", "moslora.yaml", "origin.json"}
    config = json.loads((out / "config.json").read_text())
    assert config == json.loads((world / "model" / "config.json").read_text())
    adapted = load_adapted(open_adapter(trained / "adapter"))
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    ids = torch.tensor([AutoTokenizer.from_pretrained(out)("a red fox sat near the old stone bridge").input_ids])
    torch.testing.assert_close(model(ids).logits, adapted(ids).logits, rtol=0, atol=1e-4)


def test_shards_hold_at_most_the_limit_and_load_together(trained, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    merge(trained / "adapter", out=whole)
    monkeypatch.setattr(merging, "SHARD_BYTES", 60_000)
    out = tmp_path / "sharded"
    merge(trained / "adapter", out=out)
    shards = sorted(out.glob("model-*.safetensors"))
    assert len(shards) > 3 and shards[0].name == f"model-00001-of-{len(shards):05}.safetensors"
    for path in shards:
        tensors = load_file(path)
        assert len(tensors) == 1 or sum(value.nbytes for value in tensors.values()) <= 60_000
    one = weights_of(whole)
    other = weights_of(out)
    assert one.keys() == other.keys() and all(value.equal(other[key]) for key, value in one.items())
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in one.values())


def test_in_bfloat16_the_sum_is_taken_in_float32_and_rounded_once(recipe, tmp_path):
    run = tmp_path / "run"
    train_recipe(recipe("model.dtype=bfloat16", "training.epochs=1"), out=run)
    merge(run / "adapter", out=tmp_path / "merged")
    adapter = load_file(run / "adapter" / "adapter.safetensors")
    merged = weights_of(tmp_path / "merged")
    base = weights_of(Path(open_adapter(run / "adapter").recipe.model.name))
    name = "model.layers.1.mlp.down_proj"
    delta = 2 * adapter[f"{name}.lora_b"] @ (adapter[f"{name}.mixer.weight"] @ adapter[f"{name}.lora_a"])
    assert merged[f"{name}.weight"].dtype == torch.bfloat16
    exact = (base[f"{name}.weight"] + delta).bfloat16()
    # The order of a float32 sum may tip the rounding of a few entries, by one unit at most.
    assert (merged[f"{name}.weight"] != exact).float().mean() < 0.01
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"


WRONG: dict[str, tuple[float, Callable[[AdapterLinear, LoraPair], LoraPair]]] = {
    "its scale by a hundredth": (0.01, lambda layer, pair: pair._replace(scale=1.01 * pair.scale)),
    "M transposed": (0.7, lambda layer, pair: pair._replace(a=layer.mixer.matrix().T @ layer.lora_a)),
    "one layer left out": (0.7, lambda layer, pair: pair._replace(b=pair.b * (layer.in_features == 48))),
}
"""What is wrong with a pair, and the least share of ΔW that it costs a layer."""


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_merge_is_refused_and_leaves_nothing(trained, tmp_path, monkeypatch, wrong):
    """Also where rounding hides it from the log-probabilities."""
    share, change = WRONG[wrong]
    monkeypatch.setattr(export, "fold", lambda layer: change(layer, fold(layer)))
    with pytest.raises(MosloraError, match="worse than rounding") as refused:
        merge(trained / "adapter", out=tmp_path / "merged", dtype="bfloat16")
    (found,) = re.findall(r"is off by ([\d.]+) of its ΔW", str(refused.value))
    assert share * 0.95 < float(found) < 3 and "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_errors_below_rounding_are_measured(dtype):
    """By hand: of a ΔW that is 0.3 % of W, about as much as bfloat16 rounds, a part too much or too little."""
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(300, 400, generator=generator).to(dtype).float()
    delta = 0.003 * torch.randn(300, 400, generator=generator)
    for error in (0, 0.001, 0.01, 0.1, -1):
        sums = weight_sums((plain + (1 + error) * delta).to(dtype), exact=plain + delta, plain=plain)
        assert float(sums[0] / sums[1]) == pytest.approx(abs(error), rel=0.2, abs=1e-4)
        assert sums[1:].tolist() == pytest.approx([float(delta.abs().sum()), float(plain.abs().sum())], rel=1e-3)


@pytest.mark.parametrize(("command", "name"), [("merge", "merged"), ("export", "peft")])
def test_an_unfinished_run_is_marked(
    trained,
    tmp_path,
    monkeypatch,
    capsys,
    command,
    name,
):
    """As after Ctrl-C at step 20 of 21, and then to the end."""
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    for gone in ("adapter", "checkpoints/step-21"):
        shutil.rmtree(run / gone)
    code, said, _ = cli(capsys, command, run)
    assert code == 0 and says(said, "note: ", run, "step 20 of 21")
    shutil.copytree(trained, run, dirs_exist_ok=True)
    code, _, errors = cli(capsys, command, run)
    assert code == 2 and says(errors, run / name, "--out")
    code, said, _ = cli(capsys, command, run / "checkpoints" / "step-20", "--out", tmp_path / "named")
    assert code == 0 and "note" not in said, "it was asked for"
    assert "step 20 of 21" in Card(tmp_path / "named").fields["steps"]
    assert cli(capsys, command, f"{run / 'checkpoints'}/", "--out", tmp_path / "newest")[0] == 0
    assert Card(tmp_path / "newest").fields["steps"].startswith("21, ")
    shutil.rmtree(run / name)
    monkeypatch.chdir(run / "adapter")
    assert cli(capsys, command, ".")[0] == 0 and (run / name).is_dir(), "beside the adapter, not in it"


@pytest.mark.parametrize("extra", ([], ["adapter.start=pissa", "adapter.mixer={kind: identity}"]))
def test_an_adapter_before_its_first_update_is_neither_merged_nor_exported(recipe, tmp_path, capsys, extra):
    """Step 1 of a warm-up has rate 0."""
    out = tmp_path / "run"
    short = ("training.max_steps=3", "training.checkpoint_every=1", "training.keep_checkpoints=3")
    train_recipe(recipe(*short, *extra), out=out)
    for command in ("merge", "export"):
        saved = out / "checkpoints" / "step-1"
        made = tmp_path / f"{command}-1"
        code, _, errors = cli(capsys, command, saved, "--out", made)
        assert code == 1 and not made.exists()
        assert errors.startswith(f"error: {saved}: has learned nothing yet"), errors
        made = tmp_path / f"{command}-2"
        code, _, _ = cli(capsys, command, out / "checkpoints" / "step-2", "--out", made)
        assert code == 0 and made.exists()


@pytest.mark.parametrize("write", [merge, export_peft])
def test_the_working_folder_can_be_written_into(trained, world, tmp_path, monkeypatch, write):
    """It stays the one that the shell stands in, and its card's code runs there."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    write(trained / "adapter", out=Path("."))
    code = next(re.finditer(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL))[1]
    if write is export_peft:
        code = code.replace('"path/to/model"', repr(str(world / "model")))
    names = {}
    exec(code, names)
    assert isinstance(names["model"], torch.nn.Module) and names["tokenizer"]("a").input_ids
    assert len(list(Path(".").iterdir())) > 2 and [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_merge_below_rounding_warns_and_float32_keeps_it(recipe, tmp_path):
    """Weights, config and proof have the dtype."""
    weak = recipe("model.dtype=bfloat16", "training.max_steps=3", "training.learning_rate=1e-5")
    train_recipe(weak, out=tmp_path / "run")
    proof = merge(tmp_path / "run" / "adapter", out=tmp_path / "merged")
    assert proof.effect < proof.mean_error and says(str(proof), "WARNING", "--dtype float32")
    assert "WARNING" in (tmp_path / "merged" / "README.md").read_text()
    proof = merge(tmp_path / "run" / "adapter", out=tmp_path / "wide", dtype="float32")
    assert proof.dtype == "float32" and 50 * proof.mean_error < proof.effect and "WARNING" not in str(proof)
    warned = ["WARNING" in str(replace(proof, rounding=share * proof.effect)) for share in (0.4, 0.6)]
    assert warned == [False, True], "rounding of half of what the adapter does"
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["dtype"] == "float32"
    assert {weight.dtype for weight in weights_of(tmp_path / "wide").values()} == {torch.float32}
    assert Card(tmp_path / "wide").fields["base"] == "in bfloat16", "as it was trained"
