"""Bases with bitsandbytes' 4-bit and 8-bit layers: settings, workarounds, and unpacked weights."""

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BitsAndBytesConfig, PreTrainedModel

from moslora.adapters import AdapterLinear
from moslora.borrowed import borrowed
from moslora.console import note_once
from moslora.errors import UsageError, needing
from moslora.recipe import ModelSection

# bitsandbytes warns of optional kernels at its import, also by PEFT, and of casts in every int8 layer.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def quantization_config(section: ModelSection, *, on_cpu: bool) -> BitsAndBytesConfig:
    """Build transformers' settings for the quantisation of ``section``."""
    with needing("bitsandbytes", f"model.quantization = {section.quantization}"):
        import bitsandbytes  # noqa: F401
    if on_cpu:
        note_once(f"{section.quantization} on a CPU is slow: bitsandbytes unpacks each weight whenever it is used")
    if section.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=section.dtype,
        bnb_4bit_use_double_quant=section.double_quantization,
    )


def fix_layers(model: PreTrainedModel, *, on_cpu: bool, recomputed: bool = False) -> None:
    """Work around faults of bitsandbytes' layers (0.50.2), two of which occur only on a CPU. With gradient
    checkpointing (``recomputed``), also spare 4-bit layers the unpacking of W in the backward pass.

    Raises:
        UsageError: a layer that bitsandbytes unpacks wrongly on a CPU.
    """
    layer: Any
    for path, layer in quantized_layers(model).items():
        if hasattr(layer.weight, "SCB"):
            layer.__class__ = type("Frozen8bit", (_Frozen8bit, type(layer)), {})
            continue
        layer.weight.module = None  # a reference cycle, by which the weights outlive the model
        if recomputed:
            layer.__class__ = type("Recomputed4bit", (_Recomputed4bit, type(layer)), {})
        if not on_cpu:
            continue
        # Packed in blocks across rows, but unpacked in blocks per row: silently wrong scales.
        if layer.in_features % 64:
            raise UsageError(
                f"model.quantization = nf4: {path} has {layer.in_features} inputs, not a multiple of 64,"
                " which bitsandbytes unpacks wrongly on a CPU; use int8 or null, or a GPU"
            )
        # On a CPU with AVX512-BF16 the first forward pass in evaluation mode would repack the weight permanently,
        # with scales rounded to bfloat16 and for a kernel without a gradient.
        layer.support_avx512bf16_for_cpu = False


class _Frozen8bit(nn.Module):
    """Int8 layer that keeps no input for the backward pass. bitsandbytes keeps it where checkpointing cannot free
    it."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute y = x Wᵀ + bias, shapes ``(…, in)`` and ``(…, out)``, with a backward pass that needs no x."""
        if not (torch.is_grad_enabled() and x.requires_grad):
            return self.product(x)
        y: Tensor = _Product8bit.apply(x, self)
        return y

    def product(self, x: Tensor) -> Tensor:
        """Compute bitsandbytes' product ``(…, out)`` of x ``(…, in)``; where this processor's int8 products are wrong,
        the product with the unpacked W."""
        if x.device.type != "cpu" or multiplies_int8():
            y: Tensor = super().forward(x)
            return y
        layer: Any = self
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        return F.linear(x, dequantize(self).to(x.dtype), bias)


PACKED_ROWS = 1536
"""Most rows of x for which bitsandbytes may multiply on a GPU without unpacking W, which rounds differently."""


class _Recomputed4bit(nn.Module):
    """NF4 layer below gradient checkpointing: the backward pass uses the W that the second forward pass has unpacked.

    Autograd saves W. Checkpointing drops it in the first pass, and frees it once the layer's gradient has read it.
    """

    def forward(self, x: Tensor) -> Any:
        """Compute y = x Wᵀ + bias. In training W is unpacked here, if x has the layer's compute dtype and more than
        `PACKED_ROWS` rows. Otherwise bitsandbytes computes the product."""
        layer: Any = self
        if not layer.training or x.dtype != layer.compute_dtype or x.numel() <= PACKED_ROWS * x.shape[-1]:
            return super().forward(x)
        from bitsandbytes.functional import dequantize_4bit

        weight = dequantize_4bit(layer.weight.data, layer.quant_state)  # sharded, the weight has no state of its own
        return F.linear(x, weight, layer.bias)


@cache
def multiplies_int8() -> bool:
    """Whether this processor's int8 products are exact. Without AVX-512 VNNI oneDNN adds two products in 16 bits, which
    may overflow and saturate."""
    multiply = borrowed("torch._int_mm")
    if multiply is None:
        return False
    codes = torch.full((32, 64), 127, dtype=torch.int8)
    return bool((multiply(codes, codes.T) == 64 * 127**2).all())


class _Product8bit(torch.autograd.Function):
    """Product of an int8 layer, with dx = G W for the gradient G of its output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Module) -> Tensor:
        ctx.layer = layer
        y: Tensor = layer.product(x)  # type: ignore[operator]
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        codes, unit = _codes_and_unit(ctx.layer)
        return gradient @ codes.to(gradient.dtype, copy=True).mul_(unit), None


def quantized_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of ``model`` whose weights bitsandbytes stores as codes, by name."""
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, AdapterLinear):  # it is its base's weight
            continue
        weight = getattr(module, "weight", None)
        if hasattr(weight, "quant_state") or hasattr(weight, "SCB"):  # in 4 or in 8 bits
            layers[name] = module
    return layers


@torch.no_grad()
def dequantize(base: nn.Module) -> Tensor:
    """Return W of base(x) = x Wᵀ + bias, a linear layer of torch or bitsandbytes: float32, ``(out_features,
    in_features)``.

    NF4: the values that the forward pass uses, rounded to the dtype of the computation. Int8: code · scale / 127; the
    forward pass rounds these to that dtype, or multiplies them with inputs that are rounded to 8 bits as well.
    """
    weight: Any = base.weight
    if hasattr(weight, "quant_state"):
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state).float()
    if hasattr(weight, "SCB"):
        codes, unit = _codes_and_unit(base)
        return codes.float() * unit
    return weight.detach().float()


def write_out(model: nn.Module, layers: Mapping[str, nn.Module], dtype: torch.dtype) -> None:
    """Replace the quantised ``layers`` of ``model`` by plain layers with the same weights, rounded to ``dtype``."""
    layer: Any
    for name, layer in layers.items():
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(dequantize(layer).to(dtype), requires_grad=False)
        plain.bias = layer.bias
        model.set_submodule(name, plain)


def _codes_and_unit(base: Any) -> tuple[Tensor, Tensor]:
    """Return codes and unit of an 8-bit layer, with W = codes · unit; unit is float32 ``(out_features, 1)``."""
    scales = base.state.SCB if base.weight.SCB is None else base.weight.SCB  # the first forward pass moves them there
    return base.weight.data, (scales.float() / 127).unsqueeze(1)
