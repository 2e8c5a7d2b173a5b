"""Dropout with cheap random numbers."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 2**16
"""Values of the 16 random bits of an entry: on a CPU p is a multiple of 1/65,536."""


class Dropout(nn.Module):
    """Each entry of x becomes 0 with probability p and x / (1 − p) otherwise, in training; arXiv 1207.0580.

    On a CPU torch draws one random number per entry, which takes longer than the adapter's products. Here one number of
    64 bits serves four entries of 16 bits, and a mask of all bits or none is applied to x in memory.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if self.kernel(x.device, x.dtype) == "torch":
            return F.dropout(x, self.p)
        dropped: Tensor = _Masked.apply(x, self.p)
        return dropped

    @staticmethod
    def kernel(device: torch.device, dtype: torch.dtype) -> str:
        """What computes it."""
        return "masks of 16 bits" if device.type == "cpu" and dtype.itemsize == 2 else "torch"

    def extra_repr(self) -> str:
        return f"p={self.p:g}"


class _Masked(torch.autograd.Function):
    """x ∘ mask / (1 − p) for dtypes of 16 bits; the gradient takes the same mask."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        dropped = round(p * LEVELS)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        bits = bits.view(torch.int16)[: x.numel()].view(x.shape)
        # 1 or 0, then 0 or −1: no bit or all.
        mask = torch.lt(bits, dropped - LEVELS // 2, out=torch.empty_like(bits)).sub_(1)
        ctx.save_for_backward(mask)  # not an attribute, which gradient checkpointing would keep
        ctx.scale = LEVELS / (LEVELS - dropped)
        return _masked(x, mask, ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return _masked(gradient, mask, ctx.scale), None


def _masked(x: Tensor, mask: Tensor, scale: float) -> Tensor:
    return (x.contiguous().view(torch.int16) & mask).view(x.dtype).mul_(scale)
