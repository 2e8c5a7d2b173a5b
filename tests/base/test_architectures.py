"""Families beside Llama, tiny and random: trained, scored and merged, and in the end a model of stock transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from evaluation_kit import tokenizer
from moslora.adapters import named_adapters
from moslora.convert.merge import merge
from moslora.evaluation.target import evaluate_target, open_target
from moslora.runs.adapter_folder import load_adapted, open_adapter
from moslora.training import train_recipe
from training_kit import MakeRecipe

ROPE = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPE |= {"original_max_position_embeddings": 64}
"""Positions as Llama 3.1 counts them."""
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": ROPE},
    "mistral": {"sliding_window": 16},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_it_trains_is_scored_and_merges(recipe: MakeRecipe, tmp_path: Path, family: str) -> None:
    torch.manual_seed(0)
    shapes = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
    own = {"num_key_value_heads": 2, "vocab_size": len(tokenizer()), "initializer_range": 0.1, **FAMILIES[family]}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shapes, **own)).save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")

    short = ("training.epochs=null", "training.max_steps=6", "adapter.target_modules=all-linear")
    run = train_recipe(recipe(f"model.name={tmp_path / 'base'}", *short), out=tmp_path / "run")
    adapted = load_adapted(open_adapter(run))
    assert len(list(named_adapters(adapted))) == 14
    results, _ = evaluate_target(open_target(str(tmp_path / "run")), limit=5)
    assert results.macro.n == 15
    proof = merge(run, out=tmp_path / "merged")
    assert 100 * proof.mean_error < proof.effect

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32).eval()
    ids = torch.arange(3, 43)[None]
    with torch.no_grad():
        expected, found, before = (model(ids).logits for model in (adapted, merged, base))
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(before, expected, atol=1e-2)
