"""Faults to plant in the engine, each of which a check has to name."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import bitsandbytes.functional
import pytest
import torch
from torch import Tensor
from torch.optim import adam

from moslora.adapters import MIXERS, shared_inputs
from moslora.base import quantized
from moslora.kernels import attention, dropout, linear, loss, mlp, norm, recompute, rotary
from moslora.kernels.cache import CachedPass, KeyValueCache
from moslora.kernels.rows import Group
from moslora.kernels.vocabulary import Piece
from moslora.selfcheck.piece import PLAIN_STEP
from moslora.selfcheck.steps import CHECKPOINTING
from moslora.training import loop


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
    return recompute.mark_recomputable(x, lambda gate, up: gate.clone(), gate, up)


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


right_factors = shared_inputs.Family.forward


def faster(*given: Any, lr: float, **options: Any) -> None:
    right_update(*given, lr=2 * lr, **options)


right_update = adam._fused_adam


def longer_window(step: CachedPass, window: int | None) -> Tensor:
    """A decoded token sees one token more than the window has."""
    return right_decoding_mask(step, window and window + 1)


right_decoding_mask = CachedPass._mask


def forget_row(cache: KeyValueCache, row: int) -> None:
    """The last row gets the number of the one that leaves, and not its place."""
    cache.lengths[row] = cache.lengths[-1]
    cache.lengths.pop()


def keep_all(x: Tensor, drawn: Any, *, in_place: bool = False, plus: Tensor | None = None) -> Tensor:
    return x if plus is None else x + plus


def still_scaled(gradients: Any, overflow: Tensor, inverse: Tensor) -> None:
    """The first gradient is divided by the scale, and those behind an overflow by another one."""
    right_unscale(gradients, overflow, inverse.new_full((), 2.0**-16))


right_unscale = torch._amp_foreach_non_finite_check_and_unscale_


def again_louder(*given: Any, **options: Any) -> Any:
    """Attention that is another one in the second forward pass, below gradient checkpointing."""
    out, weights = right_attend(*given, **options)
    is_second = torch._C._current_graph_task_id() >= 0
    return out * 1.2 if is_second else out, weights


right_attend = rotary.attend_in_rows


def late_rate(step: int, **options: Any) -> float:
    return right_rate(max(0, step - 1), **options)


right_rate = loop.rate_factor


def louder_product(module: Any, x: Tensor) -> Tensor:
    return right_recomputed(module, x) * 1.03


right_recomputed = quantized._Recomputed4bit.forward


def rolled_weight(weight: Tensor, state: Any, *others: Any, **options: Any) -> Tensor:
    """An unpacked weight in which the columns have moved by one."""
    unpacked = right_unpacking(weight, state, *others, **options)
    return unpacked.roll(1, -1)


right_unpacking = bitsandbytes.functional.dequantize_4bit


@dataclass(frozen=True)
class Fault:
    part: str  # what it is in
    piece: str  # what it is found in
    plant: tuple[Any, str, Any]
    in_step: bool = True  # whether a training step without dropout has it


FAULTS = {
    "norm, sign": Fault("norm", "norm", backward_times(norm._InPlace, 0, -1)),
    "norm, made again": Fault("norm", "norm", (norm, "_recompute", lambda x, root, weight: x.clone())),
    "RoPE, turned back": Fault("rope", "RoPE", backward_times(rotary.RotaryEmbedding, 1, -1)),
    "MLP, sign": Fault("mlp", "MLP", backward_times(mlp._SwiGLU, 1, -1)),
    "MLP, made again": Fault("mlp", "MLP", (mlp, "mark_recomputable", made_of_gate)),
    "linear, scale": Fault("linear", "linear", backward_times(linear._Product, 0, 1.01)),
    "linear, stale": Fault("linear", "linear", (linear, "_packed", stale_copies()), in_step=False),
    "attention, mask": Fault("attention", "attention", (Group, "seen", short_mask)),
    "attention, mask of rows alone": Fault("attention", "attention, no shared start", (Group, "seen", short_mask)),
    "attention, window": Fault("attention", "attention, sliding window", (Group, "seen", short_mask)),
    "decoding, place": Fault(PLAIN_STEP, "decoding", (KeyValueCache, "remove", forget_row), in_step=False),
    "decoding, window": Fault(
        PLAIN_STEP, "decoding, sliding window", (CachedPass, "_mask", longer_window), in_step=False
    ),
    "attention, sign": Fault("attention", "attention", backward_times(attention._Grouped, 1, -1)),
    "attention, scale": Fault("attention", "attention", (attention._Grouped, "forward", staticmethod(unscaled))),
    "adapters, scale": Fault("adapters", "adapters, dense", (shared_inputs.Family, "forward", doubled)),
    **{
        f"adapters, {kind}": Fault(
            "adapters", f"adapters, {kind}", backward_times(recompute._Projection, 1, -1), in_step=kind == "dense"
        )
        for kind in MIXERS
    },
    "dropout, none": Fault("dropout", "dropout", (recompute, "zero_dropped", keep_all), in_step=False),
    "dropout, none of many": Fault("dropout", "dropout, wide", (recompute, "zero_dropped", keep_all), in_step=False),
    "dropout, share": Fault(
        "dropout", "dropout, share", (dropout, "math", SimpleNamespace(log1p=lambda p: 2 * p)), in_step=False
    ),
    "loss, sign": Fault("loss", "loss", backward_times(loss.ChunkedLoss, 0, -1)),
    "loss, stale": Fault("loss", "log-probabilities", (loss, "pieces", stale_pieces), in_step=False),
    "optimizer": Fault("optimizer", "optimizer", (adam, "_fused_adam", faster), in_step=False),
    "scaler": Fault(
        "optimizer",
        "optimizer, scaled",
        (torch, "_amp_foreach_non_finite_check_and_unscale_", still_scaled),
        in_step=False,
    ),
    "NF4": Fault(
        "model.quantization=null",
        "product, NF4",
        (bitsandbytes.functional, "dequantize_4bit", rolled_weight),
        in_step=False,
    ),
    "NF4, scale": Fault(
        "model.quantization=null",
        "product, NF4, checkpointing",
        (quantized._Recomputed4bit, "forward", louder_product),
        in_step=False,
    ),
    "checkpointing": Fault(
        CHECKPOINTING, "a training step, checkpointing", (rotary, "attend_in_rows", again_louder), in_step=False
    ),
    "loop": Fault(PLAIN_STEP, "the training loop", (loop, "rate_factor", late_rate), in_step=False),
    "step": Fault(PLAIN_STEP, "a training step", backward_times(recompute._Projection, 1, 1.2), in_step=False),
    "int8": Fault(
        "model.quantization=null", "product, int8", backward_times(quantized._Product8bit, 0, -1), in_step=False
    ),
}


def planted(name: str, patch: pytest.MonkeyPatch) -> Fault:
    fault = FAULTS[name]
    patch.setattr(*fault.plant)
    return fault
