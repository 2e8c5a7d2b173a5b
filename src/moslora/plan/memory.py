"""Bytes that training needs on each device, from the shapes of a model on the meta device."""

import re
from bisect import bisect
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moslora.base.adapted import adapted_layers, own_parameters
from moslora.base.load import DTYPES
from moslora.kernels.linear import PACKED, kernel, packed_layers
from moslora.plan.step import Work, measure
from moslora.recipe import ModelSection

CUDA_OVERHEAD = 10**9
"""The context, the libraries' workspaces and the gaps between allocations on a GPU: an assumption."""

NCCL_BUFFERS = 6 * 10**8
"""On each of several GPUs: for 32 channels a ring's and a tree's connection of 9.6 MB, by the defaults of NCCL's
``init.cc``: an assumption."""

CPU_OVERHEAD = 25 * 10**6
"""Set up by the libraries at the first step, without the gaps that the C library's heap leaves: measured."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device when a step needs most."""

    weights: int  # the frozen base
    packed: int  # on a CPU copies of its layers in the order that products read, `moslora.kernels.linear`
    adapters: int  # in float32
    gradients: int  # in float32; with several processes also the buckets in which they are exchanged
    optimizer: int  # AdamW's two moments, and a rank budget's two running means
    activations: int  # what autograd keeps for the backward pass
    temporary: int  # the most of what comes and goes: logits, gradients of activations, an unpacked weight
    # Three times the largest decoder layer, where weights are sharded: ``wait_for_unshard`` in torch's
    # ``_fsdp_param_group.py`` copies a layer out of one flat buffer while it still holds the last layer's.
    gathered: int
    overhead: int  # of the framework
    loading: int = 0  # where a quantised base is sharded, what a device that has it whole first needs beyond all this

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def memory(
    model: PreTrainedModel,
    section: ModelSection,
    work: Work,
    *,
    on_gpu: bool,
    processes: int = 1,
    shards: int = 1,
    rank_budget: bool = False,
) -> Memory:
    """Memory of each of ``processes`` devices; ``shards`` of them share the decoder layers' frozen weights."""
    dtype, own = DTYPES[section.dtype], own_parameters(model)
    layers, outside, unpacked = _base(model, section)
    buffers = sum(x.numel() for x in {x for layer, _ in adapted_layers(model).values() for x in layer.buffers()})
    trained = sum(weight.numel() for weight in own if weight.requires_grad)
    checkpointing = section.gradient_checkpointing
    activations, temporary = measure(model, work, dtype=dtype, checkpointing=checkpointing, on_gpu=on_gpu)
    packs = not section.quantization and kernel(torch.device("cpu"), dtype) == PACKED
    decoder = model.get_decoder()  # without the output layer, which training computes in pieces
    copies = dtype.itemsize * sum(layer.weight.numel() for layer in packed_layers(decoder)) if packs else 0
    step = Memory(
        weights=outside + sum(layers.values()) // shards,
        packed=0 if on_gpu or shards > 1 else copies,
        adapters=4 * (sum(weight.numel() for weight in own) + buffers),
        gradients=4 * trained * (2 if processes > 1 else 1),
        optimizer=8 * trained * (2 if rank_budget else 1),
        activations=activations,
        temporary=temporary + unpacked,
        gathered=3 * max(layers.values()) if shards > 1 else 0,
        overhead=CUDA_OVERHEAD + NCCL_BUFFERS * (processes > 1) if on_gpu else CPU_OVERHEAD,
    )
    whole = outside + sum(layers.values()) + step.adapters + unpacked + step.overhead
    return replace(step, loading=max(0, whole - step.total) if section.quantization else 0)


def largest_budget(work: Work, *, room: int, need: Callable[[Work], Memory]) -> int | None:
    """The most tokens of a micro-batch for which ``need`` stays within ``room`` bytes.

    All of ``work``'s if they fit, otherwise a multiple of 64; ``None`` if even the longest row does not fit.
    """
    longest = work.lengths[-1]
    if need(work).total <= room:
        return work.tokens
    if need(work.of(longest)).total > room:
        return None
    fitting = bisect(range(64, work.tokens, 64), room, key=lambda tokens: need(work.of(tokens)).total)
    return max(longest, 64 * fitting)


def _base(model: PreTrainedModel, section: ModelSection) -> tuple[dict[str, int], int, int]:
    """Bytes of the base's weights: in each decoder layer; of what is not sharded, which is all outside of them, and
    quantisation's constants, as they are no parameters; and unpacked of the largest quantised weight, as a product
    unpacks all of it first. All linear layers but the output layer are quantised."""
    width, output = DTYPES[section.dtype].itemsize, model.get_output_embeddings()
    own = own_parameters(model)
    linear = {layer.weight for layer in model.modules() if isinstance(layer, nn.Linear) and layer is not output}
    layers, outside, unpacked = Counter[str](), 0, 0
    for name, weight in model.named_parameters():
        if weight in own:
            continue
        size, constants = width * weight.numel(), 0
        if section.quantization and weight in linear:
            unpacked = max(unpacked, size)
            size, constants = _quantized(weight, section)
        outside += constants
        if layer := re.match(r".*?\.\d+\.", name):
            layers[layer[0]] += size
        else:
            outside += size
    return layers, outside, unpacked


def _quantized(weight: Tensor, section: ModelSection) -> tuple[int, int]:
    """A quantised weight and its constants, as bitsandbytes 0.50 stores them.

    int8: a byte per entry, a float32 per row. NF4: half a byte per entry, a code book of 16 float32, and a scale for
    each block of 64: a float32, or with double quantisation a byte, with a float32 per 256 of them, a code book of 256
    and an offset.
    """
    if section.quantization == "int8":
        return weight.numel(), 4 * weight.shape[0]
    scales = -(-weight.numel() // 64)
    constants = scales + 4 * (-(-scales // 256) + 256 + 1) if section.double_quantization else 4 * scales
    return -(-weight.numel() // 2), 4 * 16 + constants
