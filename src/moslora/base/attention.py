"""Rows laid end to end in one sequence, without padding, each of which attends to itself alone.

    out_i = Σ_j softmax_j(s · q_i · k_j) v_j   over the tokens j ≤ i of the row that i lies in

All that a model does token by token (its linear layers, norms and output layer) needs no rows and no padding. Attention
does, and gets them as :class:`Rows`. Registered with transformers under the name :data:`ROWS`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
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
    """Rows that lie end to end, T tokens together; known on the host, so that no device is asked.

    A row may branch: its branches lie one after the other behind what they share, and each of them attends to that and
    to itself alone.

    Attributes:
        lengths: tokens of each row, branches included.
        device: where the tokens are.
        branches: of each row the tokens of its branches; empty where no row has any.
    """

    lengths: tuple[int, ...]
    device: torch.device
    branches: tuple[tuple[int, ...], ...] = ()
    _seen: dict[int | None, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def bounds(self) -> list[tuple[int, int]]:
        """Begin and end of each row."""
        ends = list(accumulate(self.lengths))
        return list(zip([0, *ends[:-1]], ends, strict=True))

    @cached_property
    def paths(self) -> list[list[int]]:
        """Of every branch the tokens that its row shares and then its own; of a plain row all its tokens."""
        paths = []
        for (begin, end), branches in zip(self.bounds, self.branches or [()] * len(self.lengths), strict=True):
            fork = end - sum(branches)
            shared = list(range(begin, fork))
            ends = list(accumulate(branches, initial=fork))
            paths += [[*shared, *range(*bounds)] for bounds in pairwise(ends)] or [shared]
        return paths

    @cached_property
    def places(self) -> list[int]:
        """Each token's place in its path."""
        places = [0] * sum(self.lengths)
        for path in self.paths:
            for place, token in enumerate(path):
                places[token] = place
        return places

    @cached_property
    def positions(self) -> Tensor:
        """`places`, int64 of shape ``(1, T)``."""
        return send([self.places], self.device)

    def seen(self, window: int | None) -> Tensor:
        """Which tokens (columns) each token (row) of each row sees, bool of shape ``(rows, longest, longest)``."""
        if window not in self._seen:
            self._seen[window] = self._seen_in_trees(window) if self.branches else self._seen_in_rows(window)
        return self._seen[window]

    def _seen_in_rows(self, window: int | None) -> Tensor:
        longest = max(self.lengths)
        seen = torch.ones(longest, longest, dtype=torch.bool, device=self.device).tril_()
        return (seen if window is None else seen.triu_(1 - window)).expand(len(self.lengths), -1, -1)

    def _seen_in_trees(self, window: int | None) -> Tensor:
        places, branch_of = [], []  # in a padded batch; branch 0 is what the others share, padding a branch of its own
        for (begin, end), branches in zip(self.bounds, self.branches, strict=True):
            padding = max(self.lengths) - (end - begin)
            places.append([*self.places[begin:end], *[0] * padding])
            own = [number for number, length in enumerate(branches, start=1) for _ in range(length)]
            branch_of.append([*[0] * (end - begin - len(own)), *own, *[-1] * padding])
        place, branch = send(places, self.device), send(branch_of, self.device)
        distance = place.unsqueeze(2) - place.unsqueeze(1)
        seen = (distance >= 0) & ((branch.unsqueeze(1) == 0) | (branch.unsqueeze(2) == branch.unsqueeze(1)))
        return seen if window is None else seen & (distance < window)

    @cached_property
    def padded(self) -> tuple[Tensor, Tensor]:
        """Where in the sequence the tokens of a padded batch lie, ``(rows · longest,)``, and the way back, ``(T,)``.

        Padding stands for its row's first token; no token looks at it, as it lies to the right.
        """
        longest = max(self.lengths)
        there = [begin + (at if begin + at < end else 0) for begin, end in self.bounds for at in range(longest)]
        back = [row * longest + at for row, length in enumerate(self.lengths) for at in range(length)]
        return send(there, self.device), send(back, self.device)


def takes_rows(model: PreTrainedModel) -> bool:
    """Whether the model's code lets its attention be exchanged, and mixes tokens in nothing but attention."""
    layers = getattr(model.config, "layer_types", None) or ()
    return (
        model._supports_attention_backend
        and model._supports_sdpa
        and not model._is_stateful
        and set(layers) <= {"full_attention", "sliding_attention"}
    )


def use_rows(model: PreTrainedModel) -> None:
    """Has every attention of ``model`` take the keywords of :func:`as_rows`, beside ordinary batches.

    Raises:
        UsageError: the model's code does not let its attention be exchanged.
    """
    if not takes_rows(model):
        raise UsageError(f"model: {type(model).__name__} has an attention of its own, which cannot be trained here")
    if model.config._attn_implementation != ROWS:
        model.set_attn_implementation(ROWS)


def as_rows(rows: Rows) -> dict[str, Any]:
    """Keywords of a decoder's forward pass over ``rows``. The empty mask keeps transformers from building one."""
    return {"position_ids": rows.positions, "attention_mask": torch.empty(1, 1, 0, 0), "rows": rows}


def kernel(device: torch.device) -> str:
    """What computes the attention of rows."""
    return "row by row" if device.type == "cpu" else "torch, fused, padded"


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
    if kernel(query.device) == "row by row":
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
    if not rows.branches and (window is None or window >= longest):
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=len(query) != len(key))
    else:  # the fused kernels that take a mask do not share keys among heads
        k, v = (x.repeat_interleave(len(query) // len(key), 1) for x in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=rows.seen(window).unsqueeze(1), scale=scaling)
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
        for (begin, end), seen in zip(rows.bounds, rows.seen(window), strict=True):
            length = end - begin
            scores = _by_key(query[:, begin:end], len(key)) @ key[:, begin:end].transpose(1, 2)
            scores = scores.view(-1, length, length).masked_fill_(~seen[:length, :length], -torch.inf)
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
