"""The documents' code runs."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from moslora.adapters import inject, named_adapters

ROOT = Path(__file__).parents[1]


def test_the_library_page_trains_with_the_trainer_of_transformers(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every Python block of docs/library.md, one after the other, on the small model."""
    (tmp_path / "model").symlink_to(world / "model")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "library.md").read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 4
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    model = names["model"]
    assert isinstance(model, torch.nn.Module)
    layers = dict(named_adapters(model))
    assert len(layers) == 6
    fresh = AutoModelForCausalLM.from_pretrained("model", dtype="float32")
    inject(fresh, rank=16, alpha=32, mixer={"kind": "dense"}, target_modules=["q_proj", "k_proj", "v_proj"])
    start = dict(named_adapters(fresh))
    for name, layer in layers.items():
        assert layer.lora_b.abs().max() > 1e-3
        assert not layer.mixer.weight.equal(start[name].mixer.weight), "M was trained"
        assert layer.base.weight.equal(start[name].base.weight)
    last = list(layers.values())[-1]
    torch.testing.assert_close(names["delta_weight"], last.delta_weight().detach(), rtol=1e-5, atol=1e-6)
