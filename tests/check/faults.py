"""Faults to plant in the engine, each of which a check has to name."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import adam

from moslora.adapters import families
from moslora.base import quantized
from moslora.kernels import attention, dropout, linear, loss, mlp, norm, recompute, rotary
from moslora.kernels.rows import Group
from moslora.kernels.vocabulary import Piece


def backward_times(function: Any, place: int, factor: float) -> tuple[Any, str, Any]:
    """One of the gradients of an autograd function multiplied: a sign, or a scale."""
    right = function.backward

    def wrong(ctx: Any, *gradients: Tensor) -> Any:
        found = right(ctx, *gradients)
        if not isinstance(found, tuple):
            return factor * found
        return *found[:place], found[place] * factor, *found[place + 1 :]

    return function, "backward", staticmethod(wrong)


def stale_copies() -> Callable[[Tensor], Tensor]:
    """A packed weight that is never made anew."""
    right = linear._packed
    copies: dict[int, Tensor] = {}
    return lambda weight: copies.setdefault(id(weight), right(weight))


def short_mask(group: Group, window: int | None) -> Tensor:
    """No query but the first sees the first key."""
    seen = right_mask(group, window).clone()
    seen[:, 1:, 0] = False
    return seen


right_mask = Group.seen


def unscaled(ctx: Any, q: Tensor, k: Tensor, v: Tensor, rows: Any, scaling: float, window: int | None) -> Tensor:
    return right_attention(ctx, q, k, v, rows, 1.0, window)


right_attention = attention._Grouped.forward


def made_of_gate(x: Tensor, make: Any, gate: Tensor, up: Tensor) -> Tensor:
    """The activation that the adapter's gradient needs is another one."""
    return recompute.made_of(x, lambda gate, up: gate.clone(), gate, up)


def stale_pieces(*given: Any) -> Iterator[Piece]:
    """Each piece of the vocabulary has the first one's sum."""
    first = None
    for piece in right_pieces(*given):
        first = first or piece
        yield replace(piece, log_sum=first.log_sum)


right_pieces = loss.pieces


def doubled(family: Any, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Factors without half of their scale."""
    a, *b = right_factors(family, dtype)
    return 2 * a, *b


right_factors = families.Family.forward


def faster(*given: Any, lr: float, **options: Any) -> None:
    right_update(*given, lr=2 * lr, **options)


right_update = adam._fused_adam


@dataclass(frozen=True)
class Fault:
    part: str  # what it is in
    piece: str  # what it is found in
    plant: tuple[Any, str, Any]
    in_step: bool = True  # whether a training step without dropout has it


FAULTS = {
    "norm, sign": Fault("norm", "norm", backward_times(norm._InPlace, 0, -1)),
    "norm, made again": Fault("norm", "norm", (norm, "_again", lambda x, root, weight: x.clone())),
    "RoPE, turned back": Fault("rope", "RoPE", backward_times(rotary.Turned, 1, -1)),
    "MLP, sign": Fault("mlp", "MLP", backward_times(mlp._SwiGLU, 1, -1)),
    "MLP, made again": Fault("mlp", "MLP", (mlp, "made_of", made_of_gate)),
    "linear, scale": Fault("linear", "linear", backward_times(linear._Product, 0, 1.01)),
    "linear, stale": Fault("linear", "linear", (linear, "_packed", stale_copies()), in_step=False),
    "attention, mask": Fault("attention", "attention", (Group, "seen", short_mask)),
    "attention, sign": Fault("attention", "attention", backward_times(attention._Grouped, 1, -1)),
    "attention, scale": Fault("attention", "attention", (attention._Grouped, "forward", staticmethod(unscaled))),
    "adapters, scale": Fault("adapters", "adapters, dense", (families.Family, "forward", doubled)),
    "adapters, sign": Fault("adapters", "adapters, dense", backward_times(recompute._Projection, 1, -1)),
    "dropout, share": Fault(
        "dropout", "dropout, share", (dropout, "math", SimpleNamespace(log1p=lambda p: 2 * p)), in_step=False
    ),
    "loss, sign": Fault("loss", "loss", backward_times(loss.ChunkedLoss, 0, -1)),
    "loss, stale": Fault("loss", "log-probabilities", (loss, "pieces", stale_pieces), in_step=False),
    "optimizer": Fault("optimizer", "optimizer", (adam, "_fused_adam", faster), in_step=False),
    "int8": Fault(
        "model.quantization=null", "product, int8", backward_times(quantized._Product8bit, 0, -1), in_step=False
    ),
}


def planted(name: str, patch: pytest.MonkeyPatch) -> Fault:
    fault = FAULTS[name]
    patch.setattr(*fault.plant)
    return fault
