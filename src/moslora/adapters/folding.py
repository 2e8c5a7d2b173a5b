"""Exact folding: every trained static mixer is a plain LoRA pair."""

from typing import NamedTuple

import torch
from torch import Tensor

from moslora.adapters.linear import AdapterLinear
from moslora.adapters.mixers.fixed import IdentityMixer
from moslora.mixer_options import IdentityOptions

ROWS = 256
"""Rows of a weight that are merged at a time."""


class LoraPair(NamedTuple):
    """ΔW = scale · b · a, with ``a (r, in_features)`` and ``b (out_features, r)``.

    ``magnitude (out_features,)`` makes it DoRA's W' = magnitude ∘ (W + ΔW) / ‖W + ΔW‖, row by row.
    """

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None

    def adapted(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """W' in ``dtype``, where ``weight`` is W, ``(out_features, in_features)``: computed in float32 or wider, some
        rows at a time, so that the copies stay small."""
        adapted = torch.empty_like(weight, dtype=dtype)
        for begin in range(0, len(weight), ROWS):
            rows = slice(begin, begin + ROWS)
            w = weight[rows].to(self.a.dtype)
            moved = w + (self.scale * (self.b[rows] @ self.a)).to(w)
            if self.magnitude is not None:
                norms = moved.norm(dim=1).clamp_min(torch.finfo(w.dtype).tiny)  # a row of zeros stays zero
                moved = (self.magnitude[rows].to(w) / norms)[:, None] * moved
            adapted[rows] = moved
        return adapted


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
    magnitude = None if layer.magnitude is None else layer.magnitude.weight.detach().clone()
    return LoraPair(a.detach().clone(), b.detach().clone(), layer.scale, magnitude)


@torch.no_grad()
def fold_into_a(layer: AdapterLinear) -> None:
    """A ← M · A and M ← I, in place, for a square M: the same function, but a different path of training."""
    layer.lora_a.copy_(layer.mixer.matrix().to(layer.lora_a) @ layer.lora_a)
    layer.mixer = IdentityMixer(IdentityOptions(), rank=layer.mixer.rank_in)
