"""The adapter's first product, h = dropout(x) Aᵀ, which saves little memory for the backward pass.

It replaces autograd's copies on every device: without it, each adapter would save its own x after dropout. Here x is
saved once for all layers that read it, and the backward pass repeats the dropout. An x that can be recomputed from
tensors that are saved anyway is marked by :func:`mark_recomputable` and not saved either. This needs no product, and
with `moslora.kernels.mlp` 40 % less memory.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from moslora.kernels.dropout import drops_within, zero_dropped
from moslora.kernels.plain import disabled_kernels


class Recomputable:
    """Activation x that the backward pass computes by ``make(*parts)``, once for all adapters that read it.

    Without ``make``, x is its only part. Only the autograd functions save the parts: gradient checkpointing frees
    nothing but saved tensors.
    """

    def __init__(self, make: Callable[..., Tensor] | None) -> None:
        self.readers = 0
        self._make = make
        self._value: Tensor | None = None
        self._readers_left = 0

    def value(self, parts: Sequence[Tensor]) -> tuple[Tensor, bool]:
        """Return x for one of its readers, and whether this reader may overwrite it.

        The last reader may, if x was recomputed.
        """
        if self._value is None:
            self._value = parts[0] if self._make is None else self._make(*parts)
            self._readers_left = self.readers
        x = self._value
        self._readers_left -= 1
        is_last = self._readers_left == 0
        if is_last:
            self._value = None
        return x, is_last and self._make is not None


def mark_recomputable(x: Tensor, make: Callable[..., Tensor], *parts: Tensor) -> Tensor:
    """Mark ``x`` as what ``make(*parts)`` computes again exactly, from parts that are saved anyway; return ``x``.

    Nothing may change x. The mark is an attribute of x that only :func:`project` reads, because the model's own code
    passes nothing but x from a norm to its readers. A weak dictionary of tensors would take microseconds each time.
    """
    if torch.is_grad_enabled():
        x.recomputable = Recomputable(make), [part.detach() for part in parts]  # type: ignore[attr-defined]
    return x


def project(x: Tensor, a: Tensor, drawn: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return h = dropout(x) Aᵀ, shape ``(..., r)``, and x for the base layer, so that one kernel sums x's gradients.

    ``a`` is A, ``(r, in_features)``, in the dtype of ``x (..., in_features)``; ``drawn`` comes from
    :meth:`moslora.kernels.dropout.Dropout.draw`.
    """
    if not torch.is_grad_enabled() or "adapters" in disabled_kernels():
        return F.linear(zero_dropped(x, drawn), a), x
    recomputable, parts = getattr(x, "recomputable", None) or (Recomputable(None), [x.detach()])
    output = _Projection.apply(x, a, drawn, recomputable, *parts)
    if x.requires_grad:
        return output  # h and x
    return output, x


class _Projection(torch.autograd.Function):
    """h = (x ∘ m) Aᵀ with dropout's mask m. With G the gradient of h, and G' that of x from other products:
    dA = Gᵀ (x ∘ m), dx = (G A) ∘ m + G'."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a: Tensor, drawn: Tensor | None, recomputable: Recomputable, *parts: Tensor
    ) -> Any:
        x_learns, a_learns, *_ = ctx.needs_input_grad
        ctx.recomputable = recomputable
        ctx.parts = len(parts)
        if a_learns:
            recomputable.readers += 1
            ctx.save_for_backward(a, drawn, *parts)
        else:
            ctx.save_for_backward(a, drawn)
        if drawn is not None and drops_within(drawn, a):
            h = torch.ops.moslora.project(x, a, *drawn.tolist())
        else:
            h = F.linear(zero_dropped(x, drawn), a)
        if x_learns:
            return h, x
        return h

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, of_x: Tensor | None = None) -> tuple[Tensor | None, ...]:
        a, drawn, *parts = ctx.saved_tensors
        x_learns, a_learns, *_ = ctx.needs_input_grad
        gradient = gradient.to(a.dtype)  # under autocast it has another dtype
        d_x = d_a = x = None
        if a_learns:
            x, in_place = ctx.recomputable.value(parts)
        if drawn is not None and drops_within(drawn, a):
            gradients = torch.ops.moslora.project_backward(gradient, a, x, of_x, *drawn.tolist())
            d_x = gradients.pop() if x_learns else None
            d_a = gradients.pop() if a_learns else None
        else:
            if x is not None:
                d_a = gradient.reshape(-1, len(a)).T @ zero_dropped(x, drawn, in_place=in_place).reshape(-1, a.shape[1])
                x = None  # freed before dx is computed
            if x_learns:
                d_x = zero_dropped(gradient @ a, drawn, in_place=True, plus=of_x)
        return d_x, d_a, *[None] * (2 + ctx.parts)
