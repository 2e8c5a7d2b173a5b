"""Dropout with few random numbers, in two steps: what to drop, and x without it.

Replaces torch's dropout. A GPU draws a mask, which the backward pass uses again. On a CPU a random number for every
entry takes longer than the adapter's products; there the places to drop are drawn, which are also what the backward
pass needs: at 0.05 a fifth of a mask.
"""

import math

import torch
from torch import Tensor, nn

from moslora.kernels.plain import left_out


class Dropout(nn.Module):
    """Each entry of x becomes 0 with probability p and x / (1 − p) otherwise, in training; arXiv 1207.0580.

    On a CPU K places are drawn, uniform and with repetition, where K is a Poisson number with mean n λ, and n the
    number of entries. Then an entry is hit by Poisson(λ) of them, independently of the others (a Poisson process, split
    up), and by none with probability exp(−λ), which is 1 − p for λ = −log(1 − p).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    @property
    def scale(self) -> float:
        """Factor of the entries that are left."""
        if not self.training:
            return 1.0
        return 1 / (1 - self.p)

    def draw(self, x: Tensor) -> Tensor | None:
        """The entries of ``x`` to drop: on a CPU their places, int32 where they fit; else a bool mask, false
        for them. ``None`` for nothing."""
        if not self.training or not self.p:
            return None
        if self.kernel(x.device) == "by mask":
            return torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - self.p)
        mean = -x.numel() * math.log1p(-self.p)
        count = int(torch.poisson(torch.tensor(mean, dtype=torch.float64)))
        dtype = torch.int64
        if x.numel() <= torch.iinfo(torch.int32).max:
            dtype = torch.int32  # they are kept, and an index of 8 bytes is made on use
        return torch.randint(max(x.numel(), 1), (count,), dtype=dtype)

    def forward(self, x: Tensor, drawn: Tensor | None) -> Tensor:
        """``x`` after dropout, given what :meth:`draw` found."""
        if drawn is None:
            return x
        return without(x, drawn) * self.scale

    @staticmethod
    def kernel(device: torch.device) -> str:
        """How the entries are drawn."""
        if device.type == "cpu" and "dropout" not in left_out():
            return "by places"
        return "by mask"


def without(x: Tensor, drawn: Tensor | None, *, in_place: bool = False, plus: Tensor | None = None) -> Tensor:
    """``x`` with zero for the entries that :meth:`Dropout.draw` found, and ``plus`` added; then x is overwritten."""
    if "dropout" in left_out():
        left = x if drawn is None else x * drawn
        return left if plus is None else left + plus
    if drawn is None:
        left = x
    elif drawn.dtype != torch.bool and (in_place or plus is not None):
        left = x.view(-1).index_fill_(0, drawn.long(), 0).view_as(x)
    elif drawn.dtype != torch.bool:
        left = x.reshape(-1).index_fill(0, drawn.long(), 0).view_as(x)
    elif plus is not None:
        return torch.addcmul(plus, x, drawn, out=x)
    elif in_place:
        left = x.mul_(drawn)
    else:
        left = x * drawn
    if plus is not None:
        left.add_(plus)
    return left
