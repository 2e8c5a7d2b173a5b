"""The exported adapter in stock PEFT."""

import json
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file

from moslora.checkpoint import load_adapted, open_adapter
from moslora.convert import export_peft
from moslora.errors import UsageError
from moslora.model import load_base
from moslora.recipe import Recipe
from moslora.training import train_recipe
from reference import token_batch

MIXERS = {
    "dense": (["adapter.mixer.init=orthogonal"], 4),
    "butterfly": (["adapter.mixer.kind=butterfly"], 2),
    "rectangular": (["adapter.rank_out=6"], 6),
}


@pytest.mark.parametrize("mixer", MIXERS)
def test_stock_peft_computes_the_same(recipe: Callable[..., Recipe], tmp_path: Path, mixer: str) -> None:
    overrides, rank = MIXERS[mixer]
    run, out = tmp_path / "run", tmp_path / "peft"
    train_recipe(recipe("training.epochs=1", *overrides), out=run)
    export_peft(run / "adapter", out=out)
    folder = open_adapter(run / "adapter")
    ours = load_adapted(folder)
    base = load_base(**folder.recipe.model.model_dump())
    ids = token_batch(base)
    without = base(ids).logits
    theirs = peft.PeftModel.from_pretrained(base, out).eval()
    with torch.inference_mode():
        expected = ours(ids).logits
        torch.testing.assert_close(theirs(ids).logits, expected, rtol=1e-5, atol=1e-5)
    assert (expected - without).abs().max() > 0.1
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"] / config["r"]) == (rank, 2.0)
    assert config["target_modules"] == ["down_proj", "q_proj", "v_proj"]
    assert {key.rsplit(".", 2)[1] for key in load_file(out / "adapter_model.safetensors")} == {"lora_A", "lora_B"}
    assert not any("mixer" in key for key in config)


def test_layers_that_share_a_name_with_others_are_named_in_full(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_recipe(recipe("training.epochs=1", r"adapter.target_modules='.*layers\.1.*q_proj'"), out=run)
    export_peft(run / "adapter", out=tmp_path / "peft")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["model.layers.1.self_attn.q_proj"]
    base = load_base(**open_adapter(run / "adapter").recipe.model.model_dump())
    model = peft.PeftModel.from_pretrained(base, tmp_path / "peft")
    found = [name for name, module in model.named_modules() if isinstance(module, peft.tuners.lora.Linear)]
    assert found == ["base_model.model.model.layers.1.self_attn.q_proj"]


def test_a_folder_in_use_is_refused(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        export_peft(trained / "adapter", out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
