"""Products with frozen weights in 4 and 8 bits, beside those with the weights written out."""

from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moslora.base.quantized import fix_layers
from moslora.check.piece import TOLERANCES, Draw, Piece


def product(draw: Draw, *, bits: int) -> Sequence[Tensor]:
    import bitsandbytes

    library: Any = bitsandbytes.nn
    x = draw.states()
    weight = draw.weight(x.shape[-1], x.shape[-1]).float().cpu()  # quantised as it is sent
    if bits == 4:
        layer = library.Linear4bit(*weight.shape, bias=False, compute_dtype=draw.dtype, quant_type="nf4")
        layer.weight = library.Params4bit(weight, requires_grad=False, quant_type="nf4").to(draw.device)
        decoded = _nf4(layer.weight)
    else:
        layer = library.Linear8bitLt(*weight.shape, bias=False, has_fp16_weights=False, threshold=6.0)
        layer.weight = library.Int8Params(weight, requires_grad=False, has_fp16_weights=False).to(draw.device)
        decoded = layer.weight.data * layer.weight.SCB[:, None] / 127
    if draw.plain:
        return [F.linear(x, decoded.to(draw.dtype))]
    model: Any = nn.ModuleList([layer])
    fix_layers(model, on_cpu=draw.device.type == "cpu")
    return [layer(x)]


def _nf4(weight: Any) -> Tensor:
    """W: for each entry the value of its code, times the scale of its block, which is a code itself."""
    state = weight.quant_state
    packed = weight.data.long()
    codes = torch.cat([packed >> 4, packed & 15], 1).view(-1, state.blocksize)
    units = state.state2.absmax.repeat_interleave(state.state2.blocksize)[: len(codes)]
    scales = state.state2.code[state.absmax.long()] * units + state.offset
    decoded: Tensor = state.code[codes] * scales[:, None]
    return decoded.view(state.shape)


def quantized_pieces() -> list[Piece]:
    """Those of bitsandbytes, where it is installed; a GPU rounds the inputs of int8, too."""
    if find_spec("bitsandbytes") is None:
        return []
    setting = "model.quantization=null"
    rounding = dict.fromkeys(TOLERANCES, 3e-2)
    return [
        Piece("product, NF4", setting, partial(product, bits=4)),
        Piece("product, int8", setting, partial(product, bits=8), rounding),
    ]
