"""Frozen linear layers against torch's own."""

import copy

import pytest
import torch
from torch import nn

from moslora.base.own_engine import use_own_modules
from moslora.kernels.linear import FrozenLinear
from moslora.kernels.mlp import GatedMLP
from moslora.kernels.norm import RMSNorm
from reference import tiny_llama, token_batch


def layers(dtype, *, bias=True):
    torch.manual_seed(0)
    theirs = nn.Linear(24, 40, bias=bias).to(dtype).requires_grad_(False)
    return FrozenLinear(theirs), copy.deepcopy(theirs)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(24,), (1, 24), (5, 3, 24), (0, 24)], ids=str)
@pytest.mark.parametrize(
    ("dtype", "rounding"), [(torch.float64, 0), (torch.float32, 1e-6), (torch.bfloat16, 0), (torch.float16, 0)]
)
def test_values_and_gradients_equal_torch(dtype, rounding, shape, bias):
    ours, theirs = layers(dtype, bias=bias)
    x = torch.randn(shape).to(dtype)
    weights = torch.randn((*shape[:-1], 40)).to(dtype)
    results = []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        out = layer(leaf)
        out.backward(weights)
        results.append((out.detach(), leaf.grad, layer(x)))
    torch.testing.assert_close(*results, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_many_rows_are_exact_on_every_processor(dtype):
    """Against float64, rounded: the sums are of float32, on processors that convert as on those that do not."""
    ours, theirs = layers(dtype)
    x = torch.randn(200, 24).to(dtype)
    weights = torch.randn(200, 40).to(dtype)
    leaf = x.clone().requires_grad_()
    out = ours(leaf)
    out.backward(weights)
    for found, exact in ((out, theirs.double()(x.double())), (leaf.grad, weights.double() @ theirs.weight)):
        torch.testing.assert_close(found.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-4)
    assert out.dtype == leaf.grad.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_weight_that_changes_is_packed_again(dtype):
    ours, theirs = layers(dtype)
    x = torch.randn(3, 24).to(dtype)
    other = torch.randn(40, 24).to(dtype)

    def same(layer=ours):
        return torch.allclose(layer(x), theirs(x), rtol=1e-5, atol=1e-5)

    assert same()
    with torch.no_grad():
        ours.weight.add_(1)
        theirs.weight.add_(1)
    assert same()
    for rows in (slice(None), slice(10, 20)):  # as a merge by hand does, which torch does not count as a change
        ours.weight.data[rows] += other[rows]
        theirs.weight.data[rows] += other[rows]
        assert same()
    ours.weight.data = other
    theirs.weight.data = other
    assert same() and same(copy.deepcopy(ours))


def test_a_weight_that_learns_has_its_gradient():
    ours, theirs = layers(torch.float32)
    x = torch.randn(3, 24)
    for layer in (ours, theirs):
        layer.requires_grad_()(x).square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


def test_exchanged_model_keeps_weights_and_results():
    """All that is exchanged: two MLPs, five norms and the linear layers; a second time nothing changes."""
    model = tiny_llama().requires_grad_(False)
    ids = token_batch(model)
    before = {name: value.data_ptr() for name, value in model.state_dict().items()}
    expected = model(ids).logits
    for _ in range(2):
        use_own_modules(model)
        kinds = [type(module) for module in model.modules()]
        assert [kinds.count(kind) for kind in (GatedMLP, RMSNorm, FrozenLinear, nn.Linear)] == [2, 5, 15, 0]
        assert {name: value.data_ptr() for name, value in model.state_dict().items()} == before
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_exchanged_modules_keep_the_mode(training):
    """Without dropout in evaluation, which scoring demands of every module."""
    model = tiny_llama().train(training)
    use_own_modules(model)
    assert {module.training for module in model.modules()} == {training}
