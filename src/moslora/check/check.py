"""The whole check: every piece on the device that is there, a training step, and one of two processes."""

from collections.abc import Iterator
from types import SimpleNamespace

import torch

from moslora.base.check import choose_engine
from moslora.base.engines import engine_of
from moslora.base.shapes import meta_model
from moslora.check.measure import Finding, measure
from moslora.check.pieces import PIECES
from moslora.check.processes import two_processes
from moslora.check.quantized import quantized_pieces
from moslora.check.step import SMALL_LLAMA, step_piece
from moslora.kernels import liger
from moslora.kernels.plain import VARIABLE, left_out
from moslora.processes.devices import device, gpus, multiplies_bfloat16
from moslora.recipe import ModelSection

SIZES = {
    "hidden_size": 1_024,
    "intermediate_size": 2_816,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "vocab_size": 32_000,
}
"""A small LLaMA with heads of LLaMA-3's size."""


def check(section: ModelSection | None = None) -> Iterator[Finding]:
    """Compares in the sizes of a model's layers, and in those of :data:`SIZES` that its config does not say.

    The step is the model's if our engine computes it.
    """
    liger.agree()
    torch.backends.cuda.enable_cudnn_sdp(False)  # as where a model is computed
    config = SMALL_LLAMA
    sizes = dict(SIZES)
    if section is not None:
        model = meta_model(section)
        choose_engine(model, computed_here=False)
        if engine_of(model).name == "own":
            config = model.config
        text = model.config.get_text_config(decoder=True)
        heads = text.num_attention_heads
        sizes |= {"num_key_value_heads": heads, "head_dim": text.hidden_size // heads}
        sizes |= {name: getattr(text, name) for name in SIZES if getattr(text, name, None)}
    for piece in (*PIECES, *quantized_pieces(), step_piece(config)):
        for dtype in piece.tolerances:
            if piece.part not in left_out() and (dtype == torch.float32 or multiplies_bfloat16(device())):
                yield measure(piece, SimpleNamespace(**sizes), device(), dtype)
    yield from two_processes()


def not_compared() -> list[str]:
    """What is left out on this machine, a line each."""
    lines = []
    if left_out():
        lines.append(f"left out by {VARIABLE}, and not compared: {', '.join(sorted(left_out()))}")
    if not multiplies_bfloat16(device()):
        lines.append("not compared: bfloat16, which this device does not multiply")
    if gpus() == 1:
        lines.append("not compared: a step of two processes, as there is one GPU")
    return lines
