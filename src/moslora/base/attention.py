"""Rows laid end to end in one sequence, without padding, each of which attends to itself alone.

    out_i = Σ_j softmax_j(s · q_i · k_j) v_j   over the tokens j ≤ i of the row that i lies in

All that a model does token by token (its linear layers, norms and output layer) needs no rows and no padding. Attention
does, and gets them as :class:`Rows`. Registered with transformers under the name :data:`ROWS`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from moslora.errors import UsageError

ROWS = "moslora-rows"


@dataclass(frozen=True)
class Rows:
    """The lengths of rows that lie end to end, T tokens together; known on the host, so that no device is asked."""

    lengths: tuple[int, ...]
    device: torch.device
    _seen: dict[int | None, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def bounds(self) -> list[tuple[int, int]]:
        """Begin and end of each row."""
        ends = list(accumulate(self.lengths))
        return list(zip([0, *ends[:-1]], ends, strict=True))

    @cached_property
    def positions(self) -> Tensor:
        """Each token's place in its row, int64 of shape ``(1, T)``."""
        return send([[place for length in self.lengths for place in range(length)]], self.device)

    def seen(self, length: int, window: int | None) -> Tensor:
        """Which tokens (columns) each token (row) of a row sees, bool of shape ``(length, length)``."""
        if window not in self._seen:  # of the longest row, whose beginning is that of any other
            longest = max(self.lengths)
            seen = torch.ones(longest, longest, dtype=torch.bool, device=self.device).tril_()
            self._seen[window] = seen if window is None else seen.triu_(1 - window)
        return self._seen[window][:length, :length]

    @cached_property
    def padded(self) -> tuple[Tensor, Tensor]:
        """Where in the sequence the tokens of a padded batch lie, ``(rows · longest,)``, and the way back, ``(T,)``.

        Padding stands for its row's first token; no token looks at it, as it lies to the right.
        """
        longest = max(self.lengths)
        there = [begin + (at if begin + at < end else 0) for begin, end in self.bounds for at in range(longest)]
        back = [row * longest + at for row, length in enumerate(self.lengths) for at in range(length)]
        return send(there, self.device), send(back, self.device)


def use_rows(model: PreTrainedModel) -> None:
    """Has every attention of ``model`` take the keywords of :func:`as_rows`, beside ordinary batches.

    Raises:
        UsageError: the model's code does not let its attention be exchanged.
    """
    if not model._supports_attention_backend:
        raise UsageError(f"model: {type(model).__name__} has an attention of its own, which cannot be trained here")
    model.set_attn_implementation(ROWS)


def as_rows(rows: Rows) -> dict[str, Any]:
    """Keywords of a decoder's forward pass over ``rows``. The empty mask keeps transformers from building one."""
    return {"position_ids": rows.positions, "attention_mask": torch.empty(1, 1, 0, 0), "rows": rows}


def attend_in_rows(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    rows: Rows | None = None,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it, of rows.

    Args:
        query: shape ``(1, heads, T, size)``.
        key: shape ``(1, key heads, T, size)``; each serves heads / key heads heads.
        value: likewise.
        rows: which tokens belong together; ``None`` for an ordinary padded batch, which torch's fused attention takes.
        scaling: s.
        sliding_window: tokens that a token sees at most, itself included; ``None`` for all before it.

    Returns:
        Shape ``(1, T, heads, size)``.

    Raises:
        UsageError: an attention of another formula.
    """
    if rows is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, sliding_window=sliding_window, **others
        )
    if softcap is not None or s_aux is not None:
        raise UsageError(f"model: {type(module).__name__} caps its scores or has sinks, which cannot be trained here")
    if query.device.type == "cpu":
        out = _RowByRow.apply(query[0], key[0], value[0], rows, scaling, sliding_window)
    else:
        out = _padded(query[0], key[0], value[0], rows, scaling, sliding_window)
    return out.transpose(0, 1)[None], None


AttentionInterface.register(ROWS, attend_in_rows)
AttentionMaskInterface.register(ROWS, sdpa_mask)


def _padded(query: Tensor, key: Tensor, value: Tensor, rows: Rows, scaling: float, window: int | None) -> Tensor:
    """Torch's fused attention over a padded batch: on a GPU, where a causal mask of its own is free."""
    there, back = rows.padded
    count, longest = len(rows.lengths), max(rows.lengths)
    q, k, v = (
        x.index_select(1, there).unflatten(1, (count, longest)).transpose(0, 1) for x in (query, key, value)
    )  # (rows, heads, longest, size)
    seen = rows.seen(longest, window) if window is not None and window < longest else None
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=seen, is_causal=seen is None, scale=scaling, enable_gqa=len(query) != len(key)
    )
    return out.transpose(0, 1).flatten(1, 2).index_select(1, back)


class _RowByRow(torch.autograd.Function):
    """The formula written out, row by row: on a CPU three times as fast as torch's fused attention for rows of 100
    tokens, backward pass included.

    With P = softmax(s Q Kᵀ) and G the gradient of O = P V: dV = Pᵀ G, dP = G Vᵀ, dS = P ∘ (dP − Σ_j P ∘ dP),
    dQ = s dS K, dK = s dSᵀ Q. The heads that share a key are one product with it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rows: Rows,
        scaling: float,
        window: int | None,
    ) -> Tensor:
        query = query * scaling
        out, weights = torch.empty_like(query), []
        for begin, end in rows.bounds:
            length = end - begin
            scores = _by_key(query[:, begin:end], len(key)) @ key[:, begin:end].transpose(1, 2)
            scores = scores.view(-1, length, length).masked_fill_(~rows.seen(length, window), -torch.inf)
            weight = scores.softmax(-1).view(len(key), -1, length)  # (key heads, heads / key heads · length, length)
            out[:, begin:end] = (weight @ value[:, begin:end]).view(-1, length, value.shape[-1])
            weights.append(weight)
        ctx.save_for_backward(query, key, value, *weights)
        ctx.bounds, ctx.scaling = rows.bounds, scaling
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *weights = ctx.saved_tensors
        d_query, d_key, d_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        for (begin, end), weight in zip(ctx.bounds, weights, strict=True):
            g = _by_key(gradient[:, begin:end], len(key))
            d_value[:, begin:end] = weight.transpose(1, 2) @ g
            d_weight = g @ value[:, begin:end].transpose(1, 2)
            d_scores = torch._softmax_backward_data(d_weight, weight, -1, weight.dtype)
            d_query[:, begin:end] = (d_scores @ key[:, begin:end]).view(-1, end - begin, key.shape[-1])
            d_key[:, begin:end] = d_scores.transpose(1, 2) @ _by_key(query[:, begin:end], len(key))
        return d_query.mul_(ctx.scaling), d_key, d_value, None, None, None


def _by_key(heads: Tensor, keys: int) -> Tensor:
    """``(heads, length, size)`` to ``(keys, heads / keys · length, size)``."""
    return heads.reshape(keys, -1, heads.shape[-1])


def send(values: Sequence[Any], device: torch.device) -> Tensor:
    """``values`` as int64 on ``device``, which nothing waits for."""
    tensor = torch.tensor(values, dtype=torch.long)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
