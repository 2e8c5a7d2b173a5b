"""The fast norm against the one of transformers that it takes the place of."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from moslora.kernels.norm import RMSNorm


def norms(dtype):
    torch.manual_seed(0)
    theirs = LlamaRMSNorm(24, eps=1e-3).to(dtype)
    theirs.weight.data.uniform_(0.5, 2).to(dtype)
    theirs.requires_grad_(False)
    return RMSNorm(theirs.weight, 1e-3), theirs


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-6), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_values_and_gradients_equal_transformers(dtype, atol):
    ours, theirs = norms(dtype)
    x, weights = torch.randn(5, 3, 24, dtype=dtype), torch.randn(5, 3, 24, dtype=dtype)
    results = []
    for norm in (ours, theirs):
        leaf = x.clone().requires_grad_()
        out = norm(leaf)
        out.backward(weights)
        assert leaf.grad is not None and out.dtype == dtype
        results.append((out.detach(), leaf.grad))
    for found, expected in zip(*results, strict=True):
        assert torch.allclose(found, expected, rtol=atol, atol=atol)


def test_gradcheck():
    ours, _ = norms(torch.float64)
    assert torch.autograd.gradcheck(ours, torch.randn(4, 24, dtype=torch.float64, requires_grad=True))
