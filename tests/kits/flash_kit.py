"""Torch's flash attention over rows of unequal lengths, by its formula, for a CPU, where torch has none.

Importing this module registers it for all tensors that a CPU holds. It checks what the kernel of CUDA demands.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

Row = tuple[Tensor, Tensor, Tensor, Tensor, slice, slice]


def of_rows(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, paths: Tensor, scale: float, left: int) -> Iterator[Row]:
    """Each row's q, k, v and softmax(s Q Kᵀ), all ``(heads, …)`` and float32 or wider, and its queries and keys. Its
    last query sees the last key, and ``left`` before it."""
    wide = torch.promote_types(q.dtype, torch.float32)
    heads_that_share = q.shape[1] // k.shape[1]
    k = k.repeat_interleave(heads_that_share, 1)
    v = v.repeat_interleave(heads_that_share, 1)
    for row_ends, path_ends in zip(pairwise(rows.tolist()), pairwise(paths.tolist()), strict=True):
        own = slice(*row_ends)
        path = slice(*path_ends)
        query = q[own].to(wide).transpose(0, 1)
        key = k[path].to(wide).transpose(0, 1)
        value = v[path].to(wide).transpose(0, 1)
        places = torch.arange(key.shape[1])
        distance = places[key.shape[1] - query.shape[1] :, None] - places
        seen = distance >= 0
        if left >= 0:
            seen &= distance <= left
        weight = (scale * query @ key.transpose(1, 2)).masked_fill(~seen, -torch.inf).softmax(-1)
        yield query, key, value, weight, own, path


@torch.library.impl("aten::_flash_attention_forward", "CPU")
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Tensor,
    paths: Tensor,
    max_q: int,
    max_k: int,
    dropout: float,
    is_causal: bool,
    debug: bool,
    *,
    scale: float,
    window_size_left: int,
    window_size_right: int,
) -> tuple[Tensor, ...]:
    for x, ends, longest in ((q, rows, max_q), (k, paths, max_k), (v, paths, max_k)):
        assert x.dim() == 3 and x.stride(-1) == 1 and x.dtype == q.dtype
        assert ends.dtype == torch.int32 and ends.is_contiguous()
        assert ends[0] == 0 and ends[-1] == len(x) and ends.diff().max() == longest
    assert q.shape[1] % k.shape[1] == 0 and len(rows) == len(paths)
    assert dropout == 0 and window_size_right == 0 and not debug
    assert is_causal == (window_size_left == -1)
    out = torch.empty_like(q)
    for _, _, value, weight, own, _ in of_rows(q, k, v, rows, paths, scale, window_size_left):
        out[own] = (weight @ value).transpose(0, 1)
    state = torch.empty(2, dtype=torch.uint64)
    return out, torch.empty(q.shape[1], len(q)), state, torch.empty(0), torch.empty(0)


@torch.library.impl("aten::_flash_attention_backward", "CPU")
def _backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    rows: Tensor,
    paths: Tensor,
    max_q: int,
    max_k: int,
    dropout: float,
    is_causal: bool,
    state: Tensor,
    unused: Tensor,
    *,
    scale: float,
    window_size_left: int,
    window_size_right: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """dV = Pᵀ G, dP = G Vᵀ, dS = P ∘ (dP − Σ_j P ∘ dP), dQ = s dS K, dK = s dSᵀ Q; summed over heads that share."""
    d_q = torch.empty_like(q)
    d_k = q.new_zeros((len(k), *q.shape[1:]), dtype=torch.promote_types(q.dtype, torch.float32))
    d_v = torch.zeros_like(d_k)
    for query, key, value, weight, own, path in of_rows(q, k, v, rows, paths, scale, window_size_left):
        g = gradient[own].to(weight.dtype).transpose(0, 1)
        d_v[path] += (weight.transpose(1, 2) @ g).transpose(0, 1)
        d_weight = g @ value.transpose(1, 2)
        d_scores = scale * weight * (d_weight - (weight * d_weight).sum(-1, keepdim=True))
        d_q[own] = (d_scores @ key).transpose(0, 1)
        d_k[path] += (d_scores.transpose(1, 2) @ query).transpose(0, 1)
    d_k = d_k.unflatten(1, (k.shape[1], -1)).sum(2)
    d_v = d_v.unflatten(1, (k.shape[1], -1)).sum(2)
    return d_q, d_k.to(q.dtype), d_v.to(q.dtype)
