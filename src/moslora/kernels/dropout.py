"""Dropout with few random numbers, in two steps: the entries to drop are drawn, then x is computed without them.

It replaces torch's dropout. On a CPU a random number for every entry takes longer than the adapter's products, so the
indices to drop are drawn. The backward pass saves only these: at p = 0.05 a fifth of a mask. A GPU with Liger-Kernel
and Triton draws a seed, from which `moslora.kernels.dropped` computes the mask within the products. Other GPUs draw a
mask, which torch applies in one pass.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from moslora.kernels.plain import disabled_kernels

WITHIN = "within the products"
MOST_ROWS_OF_A = 512
"""Maximum rank for which the memory of a GPU's multiprocessor is large enough."""


class Dropout(nn.Module):
    """Each entry of x becomes 0 with probability p and x / (1 − p) otherwise, in training; arXiv 1207.0580.

    On a CPU K indices are drawn uniformly with repetition, where K is a Poisson number with mean n λ and n is the
    number of entries. Each entry is then drawn Poisson(λ) times, independently of the others (a split Poisson process),
    and never with probability exp(−λ), which is 1 − p for λ = −log(1 − p).
    """

    supports: Callable[[Tensor], bool] = staticmethod(lambda x: False)
    """Whether `moslora.kernels.dropped` supports the device of x. `moslora.kernels.liger` sets it when it is imported,
    because adapters must not import more than torch."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    @property
    def scale(self) -> float:
        """Factor of the entries that are not dropped."""
        if not self.training:
            return 1.0
        return 1 / (1 - self.p)

    def draw(self, x: Tensor) -> Tensor | None:
        """Draw the entries of ``x`` to drop, by :meth:`kernel`; ``None`` if none are dropped.

        Returns:
            "by places": indices into the flattened x, int32 if they fit, shape ``(K,)``. :data:`WITHIN`: a seed and p,
            float64 of shape ``(2,)`` on the host. "by mask": bool of x's shape, false for the dropped entries. The seed
            comes from the CPU's generator, whose state gradient checkpointing restores.
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
        fits = x.numel() <= torch.iinfo(torch.int32).max  # half the memory; indices are widened when used
        dtype = torch.int32 if fits else torch.int64
        return torch.randint(max(x.numel(), 1), (count,), dtype=dtype)

    def forward(self, x: Tensor, drawn: Tensor | None) -> Tensor:
        """x after dropout, with x's shape, given the entries that :meth:`draw` returned."""
        if drawn is None:
            return x
        return zero_dropped(x, drawn) * self.scale

    @staticmethod
    def kernel(x: Tensor) -> str:
        """Name of the way in which the entries of ``x`` to drop are drawn."""
        if "dropout" in disabled_kernels():
            return "by mask"
        if x.device.type == "cpu":
            return "by places"
        if x.dtype.itemsize == 2 and Dropout.supports(x):
            return WITHIN
        return "by mask"


def zero_dropped(x: Tensor, drawn: Tensor | None, *, in_place: bool = False, plus: Tensor | None = None) -> Tensor:
    """Return ``x`` with zeros for the entries that :meth:`Dropout.draw` returned, plus ``plus`` of the same shape.

    ``x`` itself may be overwritten if ``in_place`` is true or ``plus`` is given.
    """
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
    """Whether `moslora.kernels.dropped` computes the mask within its products by ``a (r, in_features)``."""
    return drawn.dtype == torch.float64 and len(a) <= MOST_ROWS_OF_A


def _mask(x: Tensor, drawn: Tensor) -> Tensor:
    """Mask of the seed in ``drawn``, bool of x's shape: (1 1ᵀ) ∘ m + 0, computed by `moslora.kernels.dropped`."""
    gradient = torch.ones_like(x[..., :1], dtype=torch.float16)
    a = x.new_ones((1, x.shape[-1]), dtype=torch.float16)
    zeros = torch.zeros_like(x, dtype=torch.float16)
    (mask,) = torch.ops.moslora.project_backward(gradient, a, None, zeros, *drawn.tolist())
    return mask.bool()
