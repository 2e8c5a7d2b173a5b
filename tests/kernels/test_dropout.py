"""Dropout by places: what it keeps, how often, and that the gradient takes the same entries."""

import pytest
import torch
from torch import nn

from moslora.adapters import MIXERS, AdapterLinear, build_mixer
from moslora.kernels.dropout import Dropout, zero_dropped
from moslora.kernels.recompute import mark_recomputable, project


def dropped(dropout, x):
    return dropout(x, dropout.draw(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("p", [0.05, 0.5])
def test_entries_and_gradients_are_dropped_or_scaled(dtype, p):
    torch.manual_seed(3)
    x = torch.ones(301, 333, dtype=dtype, requires_grad=True)
    out = dropped(Dropout(p), x)
    out.sum().backward()
    kept = out != 0
    assert torch.equal(out, kept * torch.tensor(1 / (1 - p), dtype=dtype))
    assert x.grad is not None and torch.equal(x.grad, out.detach())
    n = x.numel()
    assert abs(float(kept.double().mean()) - (1 - p)) < 5 * (p * (1 - p) / n) ** 0.5


def test_seed_decides_the_draw():
    dropout = Dropout(0.3)
    x = torch.randn(64, 65).bfloat16()
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(dropped(dropout, x))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert dropped(dropout.eval(), x) is x


def test_neighbours_are_dropped_independently():
    torch.manual_seed(4)
    kept = (dropped(Dropout(0.5), torch.ones(4, 50_000, dtype=torch.bfloat16)) != 0).double().flatten()
    for distance in (1, 2, 3, 4):
        both = (kept[:-distance] * kept[distance:]).mean()
        assert abs(float(both) - 0.25) < 5 * (0.25 * 0.75 / len(kept)) ** 0.5


def test_number_of_dropped_entries_is_binomial():
    """Binomial: of n entries n p on average, with variance n p (1 − p)."""
    torch.manual_seed(5)
    n = 400
    p = 0.2
    draws = 4_000
    counts = torch.stack([(dropped(Dropout(p), torch.ones(n)) == 0).sum() for _ in range(draws)]).double()
    mean = n * p
    variance = n * p * (1 - p)
    assert abs(float(counts.mean()) - mean) < 5 * (variance / draws) ** 0.5
    assert abs(float(counts.var()) - variance) < 5 * variance * (2 / draws) ** 0.5


@pytest.mark.parametrize("kernel", ["by places", "by mask"])
@pytest.mark.parametrize("again", [True, False])
def test_projection_is_dropout_then_product(kernel, again, monkeypatch):
    """Two adapters read one x, which is kept or computed again, and so does another product."""
    monkeypatch.setattr(Dropout, "kernel", lambda *_: kernel)
    torch.manual_seed(6)
    source = torch.randn(3, 5, 8, dtype=torch.float64)
    factors = [torch.randn(2, 8, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    draws = [Dropout(0.4).draw(source) for _ in factors]
    weights = [torch.randn(3, 5, 2, dtype=torch.float64) for _ in factors]
    found = []
    for ours in (True, False):
        leaf = source.clone().requires_grad_()
        x = leaf.sin()
        if again:
            x = mark_recomputable(x, torch.sin, leaf)
        out = []
        loss = torch.zeros((), dtype=torch.float64)
        for a, drawn, weight in zip(factors, draws, weights, strict=True):
            h = zero_dropped(x, drawn) @ a.T
            behind = x
            if ours:
                h, behind = project(x, a, drawn)
            out.append(h)
            loss = loss + (h * weight).sum() + behind.cos().sum()
        found.append([*out, *torch.autograd.grad(loss, [leaf, *factors])])
    assert any((zero_dropped(source, drawn) == 0).any() for drawn in draws)
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [kind for kind in MIXERS if "gate" not in kind])
def test_an_adapter_in_training_is_the_formula(kind):
    """y = W x + s · B · M · A · x̃ with the dropped x̃."""
    torch.manual_seed(8)
    mixer = build_mixer(MIXERS[kind].options_type(), rank=4)
    layer = AdapterLinear(nn.Linear(8, 6), mixer=mixer, scale=2.0, dropout=0.4).double()
    for weight in layer.parameters():
        nn.init.normal_(weight)
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    torch.manual_seed(9)
    expected = layer.base(x) + dropped(layer.dropout, x) @ layer.delta_weight().T
    torch.manual_seed(9)
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)


def test_recomputed_activation_is_not_saved():
    """As often as there are backward passes, not readers."""
    calls = []

    def make(x):
        calls.append(x)
        return x.sin()

    leaf = torch.randn(5, 8, requires_grad=True)
    factors = [torch.randn(2, 8, requires_grad=True) for _ in range(3)]
    kept = []

    def pack(tensor):
        kept.append(tensor.untyped_storage().data_ptr())
        return tensor

    x = mark_recomputable(leaf.sin(), make, leaf)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = sum(project(x, a, None)[0].sum() for a in factors)
    assert x.untyped_storage().data_ptr() not in kept and leaf.untyped_storage().data_ptr() in kept
    out.backward(retain_graph=True)
    assert len(calls) == 1
    first = [a.grad.clone() for a in factors]
    out.backward()
    assert len(calls) == 2 and all(torch.equal(a.grad, 2 * one) for a, one in zip(factors, first, strict=True))
