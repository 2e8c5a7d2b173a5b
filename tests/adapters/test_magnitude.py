"""DoRA re-derived, and the norm that is never computed from W + ΔW against the one that is."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moslora import adapters
from moslora.adapters import AdapterLinear, Magnitude, build_mixer, fold
from moslora.mixer_options import DenseOptions, IdentityOptions
from reference import adapted_linear

MIXERS = {kind: {"kind": kind} for kind, mixer in adapters.MIXERS.items() if not mixer.options_type.routes} | {
    "kronecker": {"kind": "kronecker", "blocks": 2},
    "dense-rectangular": {"kind": "dense", "rank_out": 3},
}


def layer_of(mixer, **options):
    return adapted_linear(mixer, size=0.4, rank=4, magnitude=Magnitude(7), **options)


def row_norms(layer):
    return (layer.base.weight + layer.delta_weight()).norm(dim=1).detach()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("case", MIXERS)
def test_forward_and_gradients_are_equation_five_with_the_norm_held(case, bias):
    """y = x · (m ∘ (W + ΔW) / ‖W + ΔW‖)ᵀ + bias, all gradients by autograd through this, the norm a constant."""
    layer = layer_of(MIXERS[case], bias=bias)
    x = torch.randn(3, 5, 10, dtype=torch.float64, requires_grad=True)
    parameters = [x, *(p for p in layer.parameters() if p.requires_grad)]
    y = layer(x)
    moved = layer.base.weight + layer.delta_weight()
    expected = F.linear(x, (layer.magnitude.weight / row_norms(layer))[:, None] * moved, layer.base.bias)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-11)
    mine = torch.autograd.grad(torch.tanh(y).square().sum(), parameters)
    theirs = torch.autograd.grad(torch.tanh(expected).square().sum(), parameters)
    for one, other in zip(mine, theirs, strict=True):
        assert other.any()
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-3), (torch.float16, 4e-4)])
@pytest.mark.parametrize("ratio", [0.03, 0.3, 3.0])
def test_norm_by_expansion_is_the_norm(dtype, tolerance, ratio):
    """‖ΔW‖ up to three times ‖W‖, 256 × 192: the error of W · aᵀ in the base's dtype is all there is."""
    torch.manual_seed(0)
    layer = AdapterLinear(
        nn.Linear(192, 256).to(dtype), mixer=build_mixer(DenseOptions(), rank=8), scale=2.0, magnitude=Magnitude(256)
    )
    layer.reset_parameters()
    nn.init.normal_(layer.lora_b)
    layer.magnitude.measure(layer.base.weight)
    layer.lora_b.data *= ratio * layer.base.weight.float().norm() / layer.delta_weight().norm()
    nn.init.ones_(layer.magnitude.weight)
    a, b = layer.mixer.fold(layer.lora_a, layer.lora_b)
    base_of_a = layer.base(a.to(dtype)) - layer.base.bias
    norms = 1 / layer.magnitude(a=a, b=b, base_of_a=base_of_a.detach(), scale=2.0)
    exact = (layer.base.weight.double() + layer.delta_weight().double()).norm(dim=1)
    assert (norms / exact - 1).abs().max() < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_update_that_cancels_the_weight_stays_finite(dtype):
    """ΔW = −W: what remains is rounding, whose square may come out below zero."""
    torch.manual_seed(0)
    layer = AdapterLinear(
        nn.Linear(6, 9).to(dtype), mixer=build_mixer(IdentityOptions(), rank=6), scale=1.0, magnitude=Magnitude(9)
    )
    layer.magnitude.measure(layer.base.weight)
    layer.magnitude.reset_parameters()
    layer.lora_a.data.copy_(torch.linalg.qr(torch.randn(6, 6)).Q)
    layer.lora_b.data.copy_(-layer.base.weight.float() @ layer.lora_a.T)
    x = torch.randn(4, 6, dtype=dtype)
    y = layer(x)
    y.float().square().sum().backward()
    for value in (y, layer.lora_a.grad, layer.lora_b.grad, layer.magnitude.weight.grad):
        assert value.isfinite().all()


def test_zero_row_stays_zero():
    """Pruned and padded models have them: m = 0 over a length of 0."""
    layer = layer_of({"kind": "dense"}, bias=False)
    layer.base.weight.data[2] = 0
    layer.lora_b.data.zero_()
    layer.magnitude.measure(layer.base.weight)
    layer.magnitude.reset_parameters()
    x = torch.randn(4, 10, dtype=torch.float64)
    y = layer(x)
    torch.testing.assert_close(y, layer.base(x), rtol=1e-10, atol=1e-12)
    y.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters() if p.requires_grad)
    torch.testing.assert_close(
        fold(layer).adapted(layer.base.weight, torch.float64), layer.base.weight, rtol=1e-10, atol=1e-12
    )
