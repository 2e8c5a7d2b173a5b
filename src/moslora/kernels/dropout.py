"""Dropout with few random numbers, in two steps: what to drop, and x without it.

Replaces torch's dropout. On a CPU a random number for every entry takes longer than the adapter's products; there the
places to drop are drawn, which are also what the backward pass needs: at 0.05 a fifth of a mask. A GPU with
Liger-Kernel and Triton draws a seed, from which `moslora.kernels.dropped` makes the mask within the products. Any other
draws a mask, which torch applies in one pass, its kernel for this alone.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from moslora.kernels.plain import disabled_kernels

WITHIN = "within the products"
MOST_ROWS_OF_A = 512
"""For which a GPU's multiprocessor has the memory."""


class Dropout(nn.Module):
    """Each entry of x becomes 0 with probability p and x / (1 − p) otherwise, in training; arXiv 1207.0580.

    On a CPU K places are drawn, uniform and with repetition, where K is a Poisson number with mean n λ, and n the
    number of entries. Then an entry is hit by Poisson(λ) of them, independently of the others (a Poisson process, split
    up), and by none with probability exp(−λ), which is 1 − p for λ = −log(1 − p).
    """

    takes: Callable[[Tensor], bool] = staticmethod(lambda x: False)
    """Whether `moslora.kernels.dropped` computes where x is: from `moslora.kernels.liger`, once that is imported, as
    adapters need torch alone."""

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
        """The entries of ``x`` to drop: on a CPU their places, int32 where they fit; else a seed and p, float64 of
        shape ``(2,)`` on the host, or a bool mask, false for them. ``None`` for nothing.

        The seed comes from the CPU's generator, which gradient checkpointing sets back, too.
        """
        if not self.training or not self.p:
            return None
        kernel = self.kernel(x)
        if kernel == WITHIN:
            return torch.tensor([int(torch.randint(2**31, ())), self.p], dtype=torch.float64)
        if kernel == "by mask":
            return torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - self.p)
        mean = -x.numel() * math.log1p(-self.p)
        count = int(torch.poisson(torch.tensor(mean, dtype=torch.float64)))
        fits = x.numel() <= torch.iinfo(torch.int32).max  # they are kept, and an index of 8 bytes is made on use
        dtype = torch.int32 if fits else torch.int64
        return torch.randint(max(x.numel(), 1), (count,), dtype=dtype)

    def forward(self, x: Tensor, drawn: Tensor | None) -> Tensor:
        """``x`` after dropout, given what :meth:`draw` found."""
        if drawn is None:
            return x
        return without(x, drawn) * self.scale

    @staticmethod
    def kernel(x: Tensor) -> str:
        """How the entries of ``x`` to drop are drawn."""
        if "dropout" in disabled_kernels():
            return "by mask"
        if x.device.type == "cpu":
            return "by places"
        if x.dtype.itemsize == 2 and Dropout.takes(x):
            return WITHIN
        return "by mask"


def without(x: Tensor, drawn: Tensor | None, *, in_place: bool = False, plus: Tensor | None = None) -> Tensor:
    """``x`` with zero for the entries that :meth:`Dropout.draw` found, and ``plus`` added; x may change then."""
    if drawn is None:
        return x if plus is None else x.add_(plus)
    if drawn.dtype == torch.float64:
        drawn = _mask(x, drawn)
    if "dropout" in disabled_kernels():
        return x * drawn if plus is None else x * drawn + plus
    if drawn.dtype != torch.bool:
        entries = x.view(-1) if in_place or plus is not None else x.reshape(-1).clone()
        left = entries.index_fill_(0, drawn.long(), 0).view_as(x)
        return left if plus is None else left.add_(plus)
    if plus is not None:
        return torch.addcmul(plus, x, drawn, out=x)
    masked: Tensor = torch.ops.aten.native_dropout_backward(x, drawn, 1.0)  # x ∘ mask
    return masked


def drops_within(drawn: Tensor, a: Tensor) -> bool:
    """Whether `moslora.kernels.dropped` multiplies by ``a (r, in_features)``, and makes the mask as it does."""
    return drawn.dtype == torch.float64 and len(a) <= MOST_ROWS_OF_A


def _mask(x: Tensor, drawn: Tensor) -> Tensor:
    """The mask of a seed: (1 1ᵀ) ∘ m + 0, in 16 bits, as `moslora.kernels.dropped` multiplies."""
    gradient = torch.ones_like(x[..., :1], dtype=torch.float16)
    a = x.new_ones((1, x.shape[-1]), dtype=torch.float16)
    zeros = torch.zeros_like(x, dtype=torch.float16)
    (mask,) = torch.ops.moslora.project_backward(gradient, a, None, zeros, *drawn.tolist())
    return mask.bool()
