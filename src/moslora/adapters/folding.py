"""Exact folding of an adapter with a static mixer into a plain LoRA pair."""

from typing import NamedTuple

import torch
from torch import Tensor

from moslora.adapters.linear import AdapterLinear
from moslora.adapters.mixers.fixed import IdentityMixer
from moslora.mixer_options import IdentityOptions

ROWS = 256
"""Number of rows of a weight that are merged at a time."""


class LoraPair(NamedTuple):
    """Plain LoRA: ΔW = scale · b · a, with ``a (r, in_features)`` and ``b (out_features, r)``.

    With a ``magnitude (out_features,)`` it is DoRA: W' = magnitude ∘ (W + ΔW) / ‖W + ΔW‖, row by row.
    """

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None

    def adapted(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Adapted weight W' in ``dtype``, with the shape of ``weight``, W ``(out_features, in_features)``.

        It is computed in float32 or wider, some rows at a time, to keep the copies small.
        """
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
    """LoRA pair (M · A, B) with the ΔW of ``layer``, relative to the base's weight as it was loaded.

    Its rank is that of M, so r/k for a butterfly. If the adapter started with a part of the base's weight, that part is
    subtracted: the pair is [M · A; start_a] and [B | −start_b], of rank 2r.
    """
    a, b = layer.mixer.fold(layer.lora_a, layer.lora_b)
    if layer.start_a is not None and layer.start_b is not None:
        a = torch.cat([a, layer.start_a])
        b = torch.cat([b, -layer.start_b], dim=1)
    magnitude = None if layer.magnitude is None else layer.magnitude.weight.detach().clone()
    return LoraPair(a.detach().clone(), b.detach().clone(), layer.scale, magnitude)


@torch.no_grad()
def fold_into_a(layer: AdapterLinear) -> None:
    """Replace A by M · A and M by I in place, for a square M; this keeps ΔW but changes how training goes on."""
    layer.lora_a.copy_(layer.mixer.matrix().to(layer.lora_a) @ layer.lora_a)
    layer.mixer = IdentityMixer(IdentityOptions(), rank=layer.mixer.rank_in)
