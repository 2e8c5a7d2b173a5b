"""Attention with rotary positions against that of transformers; with rows in test_attention.py."""

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from moslora.kernels.attention import as_rows, use_rows
from moslora.kernels.exchange import exchange
from moslora.kernels.rotary import RotaryAttention, RotaryEmbedding, own_attention
from moslora.kernels.rows import Rows
from reference import tiny_llama, token_batch


def parts(dtype):
    """q and k with unequal heads, cos and sin."""
    torch.manual_seed(0)
    angles = torch.rand(1, 7, 4, dtype=torch.float64).mul(6).repeat(1, 1, 2)
    heads = [torch.randn(1, 7, count, 8, dtype=torch.float64) for count in (4, 2)]
    return [x.to(dtype) for x in (*heads, angles.cos(), angles.sin())]


@pytest.mark.parametrize(
    ("dtype", "rounding"),
    [(torch.float64, 1e-15), (torch.float32, 1e-6), (torch.bfloat16, 2**-7), (torch.float16, 2**-10)],
)
def test_rotation_equals_transformers(dtype, rounding):
    """Values and gradients; no farther from float64 than theirs of this dtype."""
    q, k, cos, sin = parts(dtype)
    weights = [torch.randn_like(q), torch.randn_like(k)]
    results = []
    for way, to in (("ours", dtype), ("theirs", dtype), ("theirs", torch.float64)):
        leaves = [x.to(to).requires_grad_() for x in (q, k)]
        if way == "ours":
            out = RotaryEmbedding.apply(*leaves, cos, sin)
        else:
            by_head = [x.transpose(1, 2) for x in leaves]
            out = [x.transpose(1, 2) for x in apply_rotary_pos_emb(*by_head, cos.to(to), sin.to(to))]
        gradients = torch.autograd.grad(out, leaves, [weight.to(to) for weight in weights])
        results.append([x.double() for x in (*out, *gradients)])
    ours, theirs, exact = results
    for mine, other, true in zip(ours, theirs, exact, strict=True):
        torch.testing.assert_close(mine, other, rtol=2 * rounding, atol=2 * rounding)
        assert (mine - true).norm() <= (other - true).norm() + 1e-6


def test_gradcheck():
    q, k, cos, sin = parts(torch.float64)
    assert torch.autograd.gradcheck(
        lambda *x: RotaryEmbedding.apply(*x, cos, sin), (q.requires_grad_(), k.requires_grad_())
    )


def test_without_rows_it_is_the_plain_module():
    """Which writes with a cache; also a second time, and after its copy."""
    model = tiny_llama().eval()
    ids = token_batch(model)
    options = {"max_new_tokens": 5, "do_sample": False}
    expected = model.generate(ids, **options), model(ids).logits
    exchange(model, own_attention)
    exchange(model, own_attention)
    assert [type(layer.self_attn) for layer in model.model.layers] == [RotaryAttention] * 2
    assert torch.equal(model.generate(ids, **options), expected[0]) and torch.equal(model(ids).logits, expected[1])


def test_a_window_that_transformers_ignores_is_ignored():
    """LlamaConfig keeps a key of the model that the weights came from."""
    model = tiny_llama()
    model.config.sliding_window = 3
    ids = token_batch(model)[:1]
    use_rows(model)
    rows = Rows((ids.shape[1],), ids.device)
    expected = model.model(ids, use_cache=False, **as_rows(rows)).last_hidden_state
    exchange(model, own_attention)
    found = model.model(ids, use_cache=False, **as_rows(rows)).last_hidden_state
    torch.testing.assert_close(found, expected)
