"""RMSNorm: y = w ∘ x / √(mean(x²) + ε), the mean in float32 (arXiv 1910.07467).

It replaces the norm of transformers, which takes six passes over the activations in as many kernels. A GPU runs torch's
fused norm. A CPU changes one float32 copy in place, forward and backward. Both differ from transformers' only by
rounding. Its gain was measured only together with the other kernels (docs/speed.md).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moslora.kernels.exchange import is_plain
from moslora.kernels.recompute import mark_recomputable


def own_norm(module: Any) -> nn.Module | None:
    """Return an :class:`RMSNorm` for a norm with the plain formula, ``None`` for any other module."""
    if is_plain(module, "RMSNorm"):
        return RMSNorm(module.weight, module.variance_epsilon)
    return None


def kernel(device: torch.device) -> str:
    """Name of the kernel that computes a frozen norm.

    The meta device has that of a CPU, because torch's fused norm would keep more tensors there than on a GPU.
    """
    if device.type in ("cpu", "meta"):
        return "in place"
    return "torch, fused"


class RMSNorm(nn.Module):
    """RMSNorm of x ``(..., width)``, with the shape and dtype of x."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight = weight
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if kernel(x.device) == "in place" and not self.weight.requires_grad:
            normed, root = _InPlace.apply(x, self.weight, self.eps)
            return mark_recomputable(normed, _recompute, x, root, self.weight)

        def fused(x: Tensor, weight: Tensor) -> Tensor:
            return F.rms_norm(x, weight.shape, weight, self.eps)

        return mark_recomputable(fused(x, self.weight), fused, x, self.weight)


class _InPlace(torch.autograd.Function):
    """With r = 1 / √(mean(x²) + ε) and G the gradient of y: dx = r · (w ∘ G − r² x · mean(w ∘ G ∘ x))."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32), copy=True)
        root = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        root = root.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, root, weight)
        ctx.mark_non_differentiable(root)
        return _scaled(wide, root, weight).to(x.dtype), root

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, root, weight = ctx.saved_tensors
        wide = x.to(root.dtype)
        scaled = gradient.to(root.dtype, copy=True).mul_(weight.to(root.dtype))
        mean = torch.linalg.vecdot(scaled, wide).div_(x.shape[-1]).unsqueeze(-1)
        return scaled.addcmul_(wide, mean.mul_(root.square()), value=-1).mul_(root).to(x.dtype), None, None


def _recompute(x: Tensor, root: Tensor, weight: Tensor) -> Tensor:
    """y of ``x (..., width)`` in the backward pass, given ``root (..., 1)``, 1 / √(mean(x²) + ε)."""
    return _scaled(x.to(root.dtype, copy=True), root, weight).to(x.dtype)


def _scaled(wide: Tensor, root: Tensor, weight: Tensor) -> Tensor:
    """w ∘ x · r, written over x in ``wide (..., width)``.

    x, r and w have one dtype, because a CPU converts mixed factors before it multiplies them, which takes longer.
    """
    return wide.mul_(root).mul_(weight.to(root.dtype))
