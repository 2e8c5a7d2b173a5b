"""Dropout with few random numbers."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Dropout(nn.Module):
    """Each entry of x becomes 0 with probability p and x / (1 − p) otherwise, in training; arXiv 1207.0580.

    On a CPU torch draws a random number for every entry, which takes longer than the adapter's products. Here the
    places to drop are drawn, of which there are few: K of them, uniform and with repetition, where K is a Poisson
    number with mean n λ, and n the number of entries. Then an entry is hit by Poisson(λ) of them, independently of
    the others (a Poisson process, split up), and by none with probability exp(−λ), which is 1 − p for λ = −log(1 − p).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if self.kernel(x.device) == "torch":
            return F.dropout(x, self.p)
        dropped: Tensor = _Dropped.apply(x, self.p)
        return dropped

    @staticmethod
    def kernel(device: torch.device) -> str:
        """What computes it."""
        return "by places" if device.type == "cpu" else "torch"

    def extra_repr(self) -> str:
        return f"p={self.p:g}"


class _Dropped(torch.autograd.Function):
    """x / (1 − p) without the entries at the places drawn; the gradient loses the same ones."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        mean = -x.numel() * math.log1p(-p)
        count = int(torch.poisson(torch.tensor(mean, dtype=torch.float64)))
        places = torch.randint(max(x.numel(), 1), (count,))
        ctx.save_for_backward(places)  # not an attribute, which gradient checkpointing would keep
        ctx.scale = 1 / (1 - p)
        return _without(x, places, ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        return _without(gradient, places, ctx.scale), None


def _without(x: Tensor, places: Tensor, scale: float) -> Tensor:
    kept = x.contiguous() * scale
    kept.view(-1).index_fill_(0, places, 0)
    return kept
