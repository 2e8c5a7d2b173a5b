"""Frozen linear layers against torch's own."""

import copy

import pytest
import torch
from torch import nn

from moslora.base.linear import FrozenLinear, use_packed_weights
from moslora.base.load import use_own_modules
from reference import tiny_llama, token_batch


def layers(dtype: torch.dtype, *, bias: bool = True) -> tuple[FrozenLinear, nn.Linear]:
    torch.manual_seed(0)
    theirs = nn.Linear(24, 40, bias=bias).to(dtype).requires_grad_(False)
    return FrozenLinear(theirs), copy.deepcopy(theirs)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(24,), (1, 24), (5, 3, 24), (0, 24)], ids=str)
@pytest.mark.parametrize(
    ("dtype", "rounding"), [(torch.float64, 0), (torch.float32, 1e-6), (torch.bfloat16, 0), (torch.float16, 0)]
)
def test_values_and_gradients_are_theirs(
    dtype: torch.dtype, rounding: float, shape: tuple[int, ...], bias: bool
) -> None:
    ours, theirs = layers(dtype, bias=bias)
    x, weights = torch.randn(shape).to(dtype), torch.randn((*shape[:-1], 40)).to(dtype)
    results = []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        out = layer(leaf)
        out.backward(weights)
        results.append((out.detach(), leaf.grad, layer(x)))
    torch.testing.assert_close(*results, rtol=rounding, atol=rounding)


def test_a_weight_that_changes_is_packed_again() -> None:
    ours, theirs = layers(torch.bfloat16)
    x, other = torch.randn(3, 24).bfloat16(), torch.randn(40, 24).bfloat16()
    assert ours(x).equal(theirs(x))
    with torch.no_grad():
        ours.weight.add_(1)
        theirs.weight.add_(1)
    assert ours(x).equal(theirs(x))
    ours.weight.data = other
    theirs.weight.data = other
    assert ours(x).equal(theirs(x)) and copy.deepcopy(ours)(x).equal(theirs(x))


def test_a_weight_that_learns_has_its_gradient() -> None:
    ours, theirs = layers(torch.float32)
    x = torch.randn(3, 24)
    for layer in (ours, theirs):
        layer.requires_grad_()(x).square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


def test_a_model_keeps_its_weights_and_their_names_and_computes_the_same() -> None:
    model = tiny_llama().requires_grad_(False)
    ids, before = token_batch(model), {name: value.data_ptr() for name, value in model.state_dict().items()}
    expected = model(ids).logits
    use_packed_weights(model)
    assert {name: value.data_ptr() for name, value in model.state_dict().items()} == before
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-5)
    use_own_modules(model)  # a second time changes nothing
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-5)
