"""The whole check: every piece on the device that is there, a training step, and one of two processes."""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import LlamaConfig

from moslora.base.shapes import meta_model
from moslora.check.measure import Finding, measure
from moslora.check.pieces import PIECES
from moslora.check.processes import two_processes
from moslora.check.quantized import quantized_pieces
from moslora.check.step import STEP
from moslora.kernels import liger
from moslora.kernels.plain import VARIABLE, left_out
from moslora.processes.devices import device, gpus, multiplies_bfloat16
from moslora.processes.group import take_gpu
from moslora.recipe import ModelSection

SMALL: dict[str, Any] = {
    "hidden_size": 1_024,
    "intermediate_size": 2_816,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "vocab_size": 32_000,
}
"""A small LLaMA with heads of LLaMA-3's size."""


def check(model: ModelSection | None = None) -> Iterator[Finding]:
    """Compares in the sizes of ``model``'s layers, and in those of :data:`SMALL` that its config does not say."""
    take_gpu()
    liger.agree()
    torch.backends.cuda.enable_cudnn_sdp(False)  # as where a model is computed
    place = device()
    config: Any = LlamaConfig(**SMALL)
    if model is not None:
        config = meta_model(model).config.get_text_config(decoder=True)
        for name, size in SMALL.items():
            if getattr(config, name, None) is None:
                setattr(config, name, size)
    for piece in (*PIECES, *quantized_pieces(), STEP):
        for dtype in piece.tolerances:
            if piece.part not in left_out() and (dtype == torch.float32 or multiplies_bfloat16(place)):
                yield measure(piece, config, place, dtype)
    yield from two_processes()


def remarks() -> list[str]:
    """What is not compared on this machine."""
    lines = []
    if not multiplies_bfloat16(device()):
        lines.append("bfloat16 was not compared: this device does not multiply it")
    if left_out():
        lines.append(f"left out by {VARIABLE}, and not compared: {', '.join(sorted(left_out()))}")
    if gpus() == 1:
        lines.append("a step of two processes was not compared: there is one GPU")
    return lines
