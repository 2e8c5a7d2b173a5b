"""RMSNorm: y = w ∘ x / √(mean(x²) + ε), the mean in float32 (arXiv 1910.07467).

Replaces the norm of transformers, which takes six passes over the activations and as many kernels. A GPU runs torch's
fused norm; a CPU changes one float32 copy in place, forward and backward. Both differ from it only by rounding.
Measured with the other pieces only (docs/speed.md).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moslora.kernels.exchange import is_plain
from moslora.kernels.recompute import made_of


def own_norm(module: Any) -> nn.Module | None:
    """Ours for a norm of plain formula."""
    if is_plain(module, "RMSNorm"):
        return RMSNorm(module.weight, module.variance_epsilon)
    return None


def kernel(device: torch.device) -> str:
    """Name of what computes a frozen norm. On the meta device torch's keeps more than the fused one of a GPU."""
    if device.type in ("cpu", "meta"):
        return "in place"
    return "torch, fused"


class RMSNorm(nn.Module):
    """y of the module's docstring; shape ``(..., width)`` and dtype stay."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight = weight
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if kernel(x.device) == "in place" and not self.weight.requires_grad:
            normed, root = _InPlace.apply(x, self.weight, self.eps)
            return made_of(normed, _again, x, root, self.weight)

        def fused(x: Tensor, weight: Tensor) -> Tensor:
            return F.rms_norm(x, weight.shape, weight, self.eps)

        return made_of(fused(x, self.weight), fused, x, self.weight)


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


def _again(x: Tensor, root: Tensor, weight: Tensor) -> Tensor:
    """y in the backward pass."""
    return _scaled(x.to(root.dtype, copy=True), root, weight).to(x.dtype)


def _scaled(wide: Tensor, root: Tensor, weight: Tensor) -> Tensor:
    """w ∘ x · r, in the place of x. All of one dtype: a CPU converts before it multiplies, which takes longer."""
    return wide.mul_(root).mul_(weight.to(root.dtype))
