"""Exact folding: every static mixer is, once trained, a plain LoRA pair."""

from typing import NamedTuple

import torch
from torch import Tensor

from moslora.adapters.linear import AdapterLinear
from moslora.adapters.mixers import IdentityMixer


class LoraPair(NamedTuple):
    """ΔW = scale · b · a, with ``a (r, in_features)`` and ``b (out_features, r)``."""

    a: Tensor
    b: Tensor
    scale: float


@torch.no_grad()
def fold(layer: AdapterLinear) -> LoraPair:
    """The plain LoRA pair with the ΔW of ``layer``: (M · A, B), of rank r/k for a butterfly."""
    a, b = layer.mixer.fold(layer.lora_a, layer.lora_b)
    return LoraPair(a.detach().clone(), b.detach().clone(), layer.scale)


@torch.no_grad()
def fold_into_a(layer: AdapterLinear) -> None:
    """A ← M · A and M ← I, in place: the same function now, another path from the next step on.

    Raises:
        ValueError: the mixer is rectangular, so that A would change its shape.
    """
    mixer = layer.mixer
    if mixer.rank_in != mixer.rank_out:
        raise ValueError(f"only a square mixer folds in place; this one is {mixer.rank_out} × {mixer.rank_in}")
    layer.lora_a.copy_(mixer.matrix().to(layer.lora_a) @ layer.lora_a)
    layer.mixer = IdentityMixer(rank=mixer.rank_in)
