"""Exact folding: every trained static mixer is a plain LoRA pair."""

from typing import NamedTuple

import torch
from torch import Tensor

from moslora.adapters.linear import AdapterLinear
from moslora.adapters.mixers.fixed import IdentityMixer
from moslora.mixer_options import IdentityOptions


class LoraPair(NamedTuple):
    """ΔW = scale · b · a, with ``a (r, in_features)`` and ``b (out_features, r)``.

    ``magnitude (out_features,)`` makes it DoRA's W' = magnitude ∘ (W + ΔW) / ‖W + ΔW‖, row by row.
    """

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None

    def adapted(self, weight: Tensor, rows: slice = slice(None)) -> Tensor:
        """The adapted weight, in the dtype of ``weight``, which is W, ``(out_features, in_features)``, or ``rows`` of
        it."""
        moved = weight + (self.scale * (self.b[rows] @ self.a)).to(weight)
        if self.magnitude is None:
            return moved
        norms = moved.norm(dim=1).clamp_min(torch.finfo(moved.dtype).tiny)  # a row of zeros stays zero
        return (self.magnitude[rows].to(weight) / norms)[:, None] * moved


@torch.no_grad()
def fold(layer: AdapterLinear) -> LoraPair:
    """(M · A, B) with the ΔW of ``layer``, relative to the weight as it was loaded; of rank r/k for a butterfly.

    If the adapter started with a part of the base's weight, that part is subtracted again: [M · A; start_a] and
    [B | −start_b], of rank 2r.
    """
    a, b = layer.mixer.fold(layer.lora_a, layer.lora_b)
    if layer.start_a is not None and layer.start_b is not None:
        a = torch.cat([a, layer.start_a])
        b = torch.cat([b, -layer.start_b], dim=1)
    magnitude = None
    if layer.magnitude is not None:
        magnitude = layer.magnitude.weight.detach().clone()
    return LoraPair(a.detach().clone(), b.detach().clone(), layer.scale, magnitude)


@torch.no_grad()
def fold_into_a(layer: AdapterLinear) -> None:
    """A ← M · A and M ← I, in place, for a square M: the same function, but a different path of training."""
    layer.lora_a.copy_(layer.mixer.matrix().to(layer.lora_a) @ layer.lora_a)
    layer.mixer = IdentityMixer(IdentityOptions(), rank=layer.mixer.rank_in)
