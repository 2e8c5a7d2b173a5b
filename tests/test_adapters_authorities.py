"""Whole training trajectories against stock PEFT, the released layer, and LoRA of half the rank."""

from collections.abc import Callable

import peft
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moslora.adapters import AdapterLinear, build_mixer, inject, named_adapters
from reference import PROJECTIONS, OfficialLayer, perturb, regression_loss, tiny_llama, token_batch

STEPS = 10


def train(model: nn.Module, parameters: list[nn.Parameter], loss: Callable[[], torch.Tensor]) -> list[float]:
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


def test_identity_is_stock_peft_lora() -> None:
    """Forward, gradients and ten AdamW steps, float32, dropout 0."""
    ours, theirs = tiny_llama(), tiny_llama()
    inject(ours, rank=4, alpha=8, mixer={"kind": "identity"}, target_modules=PROJECTIONS)
    config = peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=PROJECTIONS)
    theirs = peft.get_peft_model(theirs, config)
    stock = theirs.base_model.model
    perturb((layer.lora_b for _, layer in named_adapters(ours)), size=0.2)
    pairs = []
    for name, layer in named_adapters(ours):
        module = stock.get_submodule(name)
        for mine, other in ((layer.lora_a, module.lora_A), (layer.lora_b, module.lora_B)):
            other["default"].weight.data.copy_(mine.data)
            pairs.append((mine, other["default"].weight))
    ids = token_batch(ours)

    def loss(model: nn.Module) -> Callable[[], torch.Tensor]:
        return lambda: F.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=1e-5, atol=1e-5)
    loss(ours)().backward()
    loss(theirs)().backward()
    for mine, other in pairs:
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-6)
    start = [mine.detach().clone() for mine, _ in pairs]
    losses = train(ours, [mine for mine, _ in pairs], loss(ours))
    assert losses == pytest.approx(train(theirs, [other for _, other in pairs], loss(theirs)), rel=1e-5)
    assert losses[-1] < losses[0] - 0.1
    for (mine, other), first in zip(pairs, start, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
        assert (mine - first).abs().max() > 1e-2


def test_dense_is_the_released_layer() -> None:
    """A network of two adapted layers, float64: outputs, gradients and ten AdamW steps."""
    torch.manual_seed(0)
    bases = [nn.Linear(12, 9).double(), nn.Linear(9, 5).double()]
    mine = [AdapterLinear(base, mixer=build_mixer(kind="dense", rank=4), scale=2.0).double() for base in bases]
    for layer in mine:
        layer.reset_parameters()
        perturb([layer.lora_a, layer.lora_b, layer.mixer.weight], size=0.3)
    official = [
        OfficialLayer(layer.base, a=layer.lora_a, m=layer.mixer.weight, b=layer.lora_b, scaling=2.0) for layer in mine
    ]
    x, y = torch.randn(20, 12).double(), torch.randn(20, 5).double()

    def loss(layers: list[AdapterLinear] | list[OfficialLayer]) -> Callable[[], torch.Tensor]:
        return lambda: (layers[1](torch.tanh(layers[0](x))) - y).square().mean()

    ours = [p for layer in mine for p in (layer.lora_a, layer.mixer.weight, layer.lora_b)]
    theirs = [p for o in official for p in (o.lora_A.weight, o.lora_AB.weight, o.lora_B.weight)]
    loss(mine)().backward()
    loss(official)().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-12)
    expected = train(nn.ModuleList(official), theirs, loss(official))
    assert train(nn.ModuleList(mine), ours, loss(mine)) == pytest.approx(expected, rel=1e-10)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def clip_exactly(parameters: list[nn.Parameter], limit: float) -> None:
    """Clipping by the norm without the 1e-6 that torch adds to it, which is not scale-free."""
    norm = torch.stack([p.grad.square().sum() for p in parameters]).sum().sqrt()  # type: ignore[union-attr]
    for p in parameters:
        p.grad.mul_(torch.clamp(limit / norm, max=1))  # type: ignore[union-attr]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_butterfly_is_lora_of_half_the_rank_at_twice_the_rate(optimizer: str) -> None:
    """Start A₁ + A₂, same s, weight decay λ/2, clipping c/√2 on the twin; 60 steps in float64."""
    torch.manual_seed(1)
    base = nn.Linear(10, 7, bias=False).double()
    loss = regression_loss(base.weight.detach())
    braid = AdapterLinear(base, mixer=build_mixer(kind="butterfly", rank=8), scale=2.0).double()
    twin = AdapterLinear(base, mixer=build_mixer(kind="identity", rank=4), scale=2.0).double()
    braid.reset_parameters()
    twin.lora_a.data.copy_(braid.lora_a[:4] + braid.lora_a[4:])
    twin.lora_b.data.zero_()

    def run(layer: AdapterLinear, *, lr: float, decay: float, clip: float) -> list[torch.Tensor]:
        factors = [layer.lora_a, layer.lora_b]
        if optimizer == "sgd":
            steps: torch.optim.Optimizer = torch.optim.SGD(factors, lr=lr, momentum=0.9, weight_decay=0)
        else:
            steps = torch.optim.AdamW(factors, lr=lr, weight_decay=decay)
        path = []
        for _ in range(60):
            steps.zero_grad()
            loss(layer.delta_weight()).backward()
            clip_exactly(factors, clip)
            steps.step()
            path.append(layer.delta_weight().detach())
        return path

    rate = 0.02 if optimizer == "sgd" else 0.003
    ours = run(braid, lr=rate, decay=0.02, clip=0.1)
    theirs = run(twin, lr=2 * rate, decay=0.01, clip=0.1 / 2**0.5)
    for step, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10, msg=f"step {step}")
    assert ours[-1].norm() > 0.01
