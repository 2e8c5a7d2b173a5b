"""The documents' code runs."""

import re
from pathlib import Path

import pytest
import torch

from moslora.adapters import named_adapters

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
    start = torch.nn.init.kaiming_uniform_(torch.empty(16, 16), a=5**0.5)
    for layer in layers.values():
        assert layer.lora_b.abs().max() > 1e-3, "trained"
        assert not layer.base.weight.requires_grad
        assert layer.mixer.weight.shape == start.shape
    last = list(layers.values())[-1]
    torch.testing.assert_close(names["delta_weight"], last.delta_weight().detach(), rtol=1e-5, atol=1e-6)
