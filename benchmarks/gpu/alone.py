"""Timing of a step's products with frozen weights and of its Triton kernels, each alone in LLaMA-3-8B's shapes, next to
the ESTIMATE of `operations.py`."""

from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import product
from math import ceil
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.gpu.operations import ACHIEVED, REST, described
from benchmarks.gpu.race import DEVICE, GPU, SIZES, Record, this_device
from benchmarks.timing import seconds
from moslora.kernels import liger

TOKENS = (1749, 219) if GPU else (20,)
"""Numbers of tokens of a step, and of its share on each of eight GPUs."""

CALLS = 20 if GPU else 1
COLD = 2e8 if GPU else 1
"""Bytes of the factors that products use in turn, so that none stays in the device's cache."""

RANK = 16
TILES = ((16, 32, 64), (64, 128, 256))
"""Numbers of rows and columns of the forward product's tiles to try."""


def timed(function: Any, *of_calls: tuple[Any, ...]) -> dict[str, Any]:
    """Milliseconds of a call with each of the arguments in turn, the minimum of three rounds; and the estimate."""

    def run() -> None:
        for number in range(CALLS):
            function(*of_calls[number % len(of_calls)])

    found = function(*of_calls[0])  # compiles
    operation = described(function, (of_calls[0], {}), found, part=REST)
    took = min(seconds(run) for _ in range(3)) / CALLS
    estimate = [achieved.seconds(operation, this_device()) * 1e3 for achieved in ACHIEVED]
    return {"ms": took * 1e3, "tflops": operation.flops / took / 1e12, "estimate_ms": estimate}


def products(record: Record) -> None:
    """Time each shape of a product with a frozen weight, forward and backward (for the gradient of its input)."""
    hidden, inner = SIZES["hidden_size"], SIZES["intermediate_size"]
    keys = hidden // SIZES["num_attention_heads"] * SIZES["num_key_value_heads"]
    shapes = {"q, o": (hidden, hidden), "k, v": (keys, hidden), "gate, up": (inner, hidden), "down": (hidden, inner)}
    for name, (outputs, inputs) in (shapes | {"output layer": (SIZES["vocab_size"], hidden)}).items():
        count = max(1, ceil(COLD / (2 * outputs * inputs)))
        weights = torch.randn(count, outputs, inputs, device=DEVICE, dtype=torch.bfloat16)
        for tokens in TOKENS:
            x, gradient = (torch.randn(tokens, n, device=DEVICE, dtype=torch.bfloat16) for n in (inputs, outputs))
            forwards = timed(torch.ops.aten.mm.default, *((x, weight.T) for weight in weights))
            backwards = timed(torch.ops.aten.mm.default, *((gradient, weight) for weight in weights))
            record(**{f"{name}, {tokens} tokens": {"forwards": forwards, "backwards": backwards}})


def kernels(record: Record) -> None:
    """Time Liger-Kernel's kernels and moslora's products with dropout, the forward product over tiles and programs."""
    if not (GPU and liger.is_used()):
        record(skipped="Triton or Liger-Kernel is not there, or there is no GPU")
        return
    operations = torch.ops.moslora
    for tokens in TOKENS:
        for name, operation, given in calls(tokens):
            record(**{f"{name}, {tokens} tokens": timed(operation, given)})
        for width in (SIZES["hidden_size"], SIZES["intermediate_size"]):
            x, a = randoms((tokens, width), (RANK, width))
            for height, columns, warps, programs in product(*TILES, (4, 8), (1, 2, 4)):
                dropped = import_module("moslora.kernels.dropped")
                with patch.multiple(dropped, TILE=(height, columns), WARPS=warps, PROGRAMS=programs):
                    found = timed(operations.project.default, (x, a, 7.0, 0.05))
                tile = f"{height} × {columns}, {warps} warps, {programs} programs"
                record(**{f"project of {width}, {tokens} tokens, {tile}": found})


def calls(tokens: int) -> Iterator[tuple[str, Callable[..., Any], tuple[Any, ...]]]:
    """Names of kernels, the operations that launch them, and their arguments."""
    operations = torch.ops.moslora
    hidden, inner, heads = (SIZES[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads"))
    size = hidden // heads
    yield "swiglu", operations.swiglu.default, (*randoms((tokens, inner), (tokens, inner)),)
    yield "swiglu_backward", operations.swiglu_backward.default, (*randoms(*[(tokens, inner)] * 3),)
    q, k = randoms((1, tokens, heads, size), (1, tokens, SIZES["num_key_value_heads"], size))
    yield "rope", operations.rope.default, (q, k, *randoms((1, tokens, size), (1, tokens, size)), False)
    for width in (hidden, inner):
        gradient, a, x, of_x = randoms((tokens, RANK), (RANK, width), (tokens, width), (tokens, width))
        given = (gradient, a, x, of_x, 7.0, 0.05)
        yield f"project_backward of {width}", operations.project_backward.default, given


def randoms(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, device=DEVICE, dtype=torch.bfloat16) for shape in shapes]
