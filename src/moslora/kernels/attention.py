"""Attention within the rows of one sequence, in which rows follow each other without padding.

    out_i = Σ_j softmax_j(s · q_i · k_j) v_j   over the tokens j ≤ i of the path of i

The path of a token is its row, preceded by the rows that this row continues, if any (`moslora.kernels.rows`).

Linear layers, norms and the output layer compute each token by itself and need to know nothing about rows. Attention
gets the rows as :class:`Rows`. It is registered with transformers under the name :data:`ROWS`.

It replaces transformers' attention over a padded batch. On NVIDIA GPUs from Ampere on, torch's flash attention computes
rows of unequal lengths in 16 bits. Other GPUs, and float32, pad the rows for torch's other fused kernels. A CPU
computes the formula in groups of similar rows, which for rows of 100 tokens is several times as fast as torch's fused
attention.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from moslora.borrowed import borrowed
from moslora.errors import UsageError
from moslora.kernels.plain import disabled_kernels
from moslora.kernels.rows import Rows, send
from moslora.processes.devices import has_flash_attention

ROWS = "moslora-rows"

GROUPED = "in groups of rows"
UNPADDED = "torch, flash, unpadded"
PADDED = "torch, fused, padded"
PLAIN = "the plain formula"


class RowsWithPast(Protocol):
    """Rows whose tokens also attend to tokens of earlier passes, such as `moslora.kernels.cache.CachedPass`."""

    device: torch.device

    @property
    def positions(self) -> Tensor:
        """Position of each token in its text, int64 of shape ``(1, T)``."""

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None
    ) -> Tensor:
        """Attention in ``module``, shape ``(T, heads, size)``.

        ``query`` is ``(heads, T, size)``, ``key`` and ``value`` ``(key heads, T, size)``.
        """


def use_rows(model: PreTrainedModel) -> None:
    """Make every attention of ``model`` accept the keywords of :func:`as_rows`, as well as ordinary batches.

    Raises:
        UsageError: the model has a kind of attention that cannot be replaced.
        ImportError: transformers has no interface for other attention.
    """
    if getattr(model, "moslora_rows", False):
        return
    # An unusual type of layer may choose among tokens only where a row has thousands, which no short row shows.
    layer_types = getattr(model.config.get_text_config(decoder=True), "layer_types", None) or ()
    if not {*layer_types} <= {"full_attention", "sliding_attention"}:
        raise UsageError(f"model: {type(model).__name__} has its own kind of attention, which moslora cannot replace")
    _register()
    with _hushed(logging.getLogger("transformers.modeling_utils")):  # it warns of a model whose attention stays
        model.set_attn_implementation(ROWS)
    model.moslora_rows = True  # type: ignore[assignment]


@contextmanager
def _hushed(logger: logging.Logger) -> Iterator[None]:
    """Inside the block, drop what ``logger`` is given."""
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


@cache
def _register() -> None:
    """Register :func:`attend_in_rows` with transformers, with the masks of torch's fused attention."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ROWS, attend_in_rows)
    AttentionMaskInterface.register(ROWS, AttentionMaskInterface()["sdpa"])


def as_rows(rows: Rows | RowsWithPast) -> dict[str, Any]:
    """Keywords of a decoder's forward pass over ``rows``. The empty mask keeps transformers from building a mask."""
    return {"position_ids": rows.positions, "attention_mask": torch.empty(1, 1, 0, 0), "rows": rows}


def kernel(device: torch.device, dtype: torch.dtype, size: int) -> str:
    """Name of the kernel that computes attention of rows; ``size`` is the number of entries of a head."""
    if "attention" in disabled_kernels():
        return PLAIN
    if device.type == "cpu":
        return GROUPED
    fits = dtype.itemsize == 2 and size % 8 == 0 and size <= 256
    if fits and has_flash_attention(device):
        return UNPADDED
    return PADDED


def attend_in_rows(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    rows: Rows | RowsWithPast | None = None,
    scaling: float,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of rows with the signature that transformers calls; the result has shape ``(1, T, heads, size)``.

    Args:
        query: shape ``(1, heads, T, size)``.
        key: shape ``(1, key heads, T, size)``; each serves heads / key heads heads.
        value: shape ``(1, key heads, T, size)``.
        rows: which tokens belong together; ``None`` for an ordinary padded batch, which torch's fused attention
            computes.
        scaling: s.
        sliding_window: maximum number of tokens that a token sees, itself included; ``None`` for all before it.

    Raises:
        UsageError: the model's attention computes another formula.
    """
    plain_scores = others.get("softcap") is None and others.get("s_aux") is None
    if not plain_scores or value.shape[-1] != query.shape[-1]:
        unusual = "caps its scores, has sinks, or has values of another size than its keys"
        raise UsageError(f"model: {type(module).__name__} {unusual}, which moslora does not support")
    if rows is None:
        from transformers import AttentionInterface

        fused = AttentionInterface()["sdpa"]
        out, _ = fused(
            module, query, key, value, attention_mask, scaling=scaling, sliding_window=sliding_window, **others
        )
        return out, None
    # Not query[0], whose backward pass copies the gradient into a tensor of zeros; that of squeeze is a view.
    q, k, v = (x.squeeze(0) for x in (query, key, value))
    if isinstance(rows, Rows):
        out = attend(q, k, v, rows, scaling, sliding_window)
    else:
        out = rows.attend(module, q, k, v, scaling, sliding_window)
    return out[None], None


def attend(query: Tensor, key: Tensor, value: Tensor, rows: Rows, scaling: float, window: int | None) -> Tensor:
    """Attention of ``rows`` by the kernel of the device, shape ``(T, heads, size)``.

    ``query`` is ``(heads, T, size)``, ``key`` and ``value`` ``(key heads, T, size)``.
    """
    functions = {GROUPED: _Grouped.apply, UNPADDED: _unpadded, PADDED: _padded, PLAIN: plain_attention}
    function = functions[kernel(query.device, query.dtype, query.shape[-1])]
    out: Tensor = function(query, key, value, rows, scaling, window)
    return out


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, rows: Rows, scaling: float, window: int | None
) -> Tensor:
    """Attention of rows by the plain formula, one row at a time, in float32 or wider; shapes as in :func:`attend`."""
    wide = torch.promote_types(query.dtype, torch.float32)
    q, k, v = (x.to(wide) for x in (query, key, value))
    outputs = []
    for (begin, end), path in zip(rows.bounds, rows.paths, strict=True):
        keys = send(path, query.device)
        of_path = (x.index_select(1, keys).repeat_interleave(len(q) // len(x), 0) for x in (k, v))
        path_keys, path_values = of_path
        places = torch.arange(len(path))
        distance = places[begin - end :, None] - places
        hidden = distance < 0
        if window is not None:
            hidden |= distance >= window
        scores = scaling * q[:, begin:end] @ path_keys.transpose(1, 2)
        outputs.append(scores.masked_fill(send(hidden, query.device), -torch.inf).softmax(-1) @ path_values)
    return torch.cat(outputs, 1).transpose(0, 1).to(query.dtype)


def _unpadded(query: Tensor, key: Tensor, value: Tensor, rows: Rows, scaling: float, window: int | None) -> Tensor:
    """Attention of rows by torch's flash attention; shapes as in :func:`attend`.

    Each row has its own queries, and the keys and values of its path: first those of its past (`Rows.pasts`), then its
    own. If any row has a past, these keys and values are copies. The last query of a row sees its last key, as with
    `torch.nn.attention.bias.causal_lower_right`.
    """
    q, k, v = (x.transpose(0, 1) for x in (query, key, value))  # (T, heads, size)
    if rows.path_keys is not None:
        # Where rows share a key, its gradients are added up in float32.
        wide = torch.promote_types(k.dtype, torch.float32) if torch.is_grad_enabled() else k.dtype
        k, v = (x.to(wide).index_select(0, rows.path_keys).to(x.dtype) for x in (k, v))
    seen_before = -1 if window is None else window - 1  # -1: all
    longest_path = max(len(path) for path in rows.paths)
    of_rows = (*rows.ends, max(rows.lengths), longest_path, 0.0, window is None)  # no dropout; whether all is seen
    out: Tensor = _Flash.apply(q, k, v, of_rows, {"scale": scaling, "window_size_left": seen_before})
    return out


class _Flash(torch.autograd.Function):
    """Torch's flash attention and its gradient; `torch.nn.attention.varlen_attn` would launch three more kernels that
    fill tensors."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, of_rows: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
        ctx.of_rows = of_rows
        ctx.options = options | {"window_size_right": 0}
        compute = borrowed("torch.ops.aten._flash_attention_forward")
        out, log_sums, state, unused, _ = compute(q, k, v, *of_rows, False, **ctx.options)
        ctx.save_for_backward(q, k, v, out, log_sums, state, unused)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, state, unused = ctx.saved_tensors
        compute = borrowed("torch.ops.aten._flash_attention_backward")
        return *compute(gradient, *tensors, *ctx.of_rows, state, unused, **ctx.options), None, None


def _padded(query: Tensor, key: Tensor, value: Tensor, rows: Rows, scaling: float, window: int | None) -> Tensor:
    """Attention of rows by torch's fused kernels over padded batches, whose causal mask costs a GPU nothing; shapes as
    in :func:`attend`."""
    heads, _, size = query.shape
    query_entries, key_entries, value_entries = (_entries(x, 1) for x in (query, key, value))
    flash = borrowed("torch.ops.aten._scaled_dot_product_flash_attention")
    outputs = []
    for group in rows.groups():
        # (n · length, heads · size)
        batch = (group.batch(query_entries), group.with_past(key_entries), group.with_past(value_entries))
        q, k, v = (x.view(group.shape[0], -1, x.shape[1] // size, size) for x in batch)
        q, k, v = (_repeated(x, heads).transpose(1, 2) for x in (q, k, v))  # only flash attention shares keys
        if group.past or (window is not None and window < group.longest):
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=group.seen(window).unsqueeze(1), scale=scaling)
        elif q.is_meta and flash is not None:  # stands for a GPU; there torch would write the formula out
            out = flash(q, k, v, is_causal=True, scale=scaling)[0]
        else:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
        outputs.append(group.back(out.transpose(1, 2).flatten(2).flatten(0, 1)))
    return torch.cat(outputs).unflatten(1, (heads, size))


def _repeated(keys: Tensor, heads: int) -> Tensor:
    """Keys ``(…, key heads, size)``, each repeated for the heads that it serves: ``(…, heads, size)``."""
    key_heads = keys.shape[-2]
    if key_heads == heads:
        return keys
    return keys.repeat_interleave(heads // key_heads, -2)


class _Grouped(torch.autograd.Function):
    """Attention by its formula, one group of rows after the other, and its gradient; shapes as in :func:`attend`.

    With P = softmax(s Q Kᵀ) and G the gradient of O = P V: dV = Pᵀ G, dP = G Vᵀ, dS = P ∘ (dP − Σ_j P ∘ dP),
    dQ = s dS K, dK = s dSᵀ Q. The heads that share a key are one product with it. The softmax is taken in float32,
    which is also faster here than in bfloat16.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, rows: Rows, scaling: float, window: int | None
    ) -> Tensor:
        heads, _, size = query.shape
        key_heads = len(key)
        q, k, v = (_entries(x, key_heads) for x in (query * scaling, key, value))
        out = torch.empty_like(q)
        groups = rows.groups(key_heads)
        weights = []
        for group in groups:
            by_key = (group.shape[0] * key_heads, -1, size)  # the heads that share a key one below another
            scores = group.batch(q).view(by_key) @ group.with_past(k).view(by_key).transpose(1, 2)
            masked = scores.view(*group.shape, heads // key_heads, -1) + group.mask(window)
            weight = masked.softmax(-1).to(scores.dtype).view_as(scores)
            group.back((weight @ group.with_past(v).view(by_key)).view(-1, q.shape[1]), out)
            weights.append(weight)
        ctx.save_for_backward(q, k, v, *weights)
        ctx.groups = groups
        ctx.scaling = scaling
        ctx.key_heads = key_heads
        return out.view(-1, heads, size)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *weights = ctx.saved_tensors
        size = k.shape[1]
        d_out = gradient.reshape(q.shape)
        d_q = torch.empty_like(q)
        d_k = torch.empty_like(k)
        d_v = torch.empty_like(v)
        for group, weight in zip(ctx.groups, weights, strict=True):
            by_key = (len(weight), -1, size)
            # Padding is zero because dV and dK are sums over all queries of the batch.
            g = group.batch(d_out, zero_padding=True).view(by_key)
            group.back_with_past((weight.transpose(1, 2) @ g).view(-1, size), d_v)
            d_weight = g @ group.with_past(v).view(by_key).transpose(1, 2)
            d_scores = _softmax_backward(d_weight, weight)
            group.back((d_scores @ group.with_past(k).view(by_key)).view(-1, q.shape[1]), d_q)
            group.back_with_past((d_scores.transpose(1, 2) @ group.batch(q).view(by_key)).view(-1, size), d_k)
        d_q.mul_(ctx.scaling)
        as_heads = (x.view(len(x) // ctx.key_heads, -1, size).transpose(0, 1) for x in (d_q, d_k, d_v))
        return *as_heads, None, None, None


def _softmax_backward(gradient: Tensor, weight: Tensor) -> Tensor:
    """dS = P ∘ (dP − Σ_j P ∘ dP) of P ``weight`` and dP ``gradient``, all of one shape."""
    fused = borrowed("torch._softmax_backward_data")
    if fused is not None:
        d_scores: Tensor = fused(gradient, weight, -1, weight.dtype)
        return d_scores
    return (gradient - (weight * gradient).sum(-1, keepdim=True)).mul_(weight)


def _entries(x: Tensor, key_heads: int) -> Tensor:
    """Entries of ``x (heads, T, size)`` for `moslora.kernels.rows.Group`, shape ``(T · K, heads / K · size)``: an entry
    for each token and key head, which holds the heads that share this key."""
    return x.transpose(0, 1).reshape(x.shape[1] * key_heads, -1)
