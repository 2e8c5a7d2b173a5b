"""Memory that training needs on each device, in bytes, from the shapes of a model on the meta device."""

import math
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
from moslora.plan.step import Work, measure, multiplied_twice
from moslora.recipe import ModelSection

CUDA_OVERHEAD = 10**9
"""Bytes of a GPU's context, the libraries' workspaces and the gaps between allocations: an assumption."""

NCCL_BUFFERS = 6 * 10**8
"""Bytes of NCCL's buffers on each of several GPUs: a ring's and a tree's connection of 9.6 MB for 32 channels, by the
defaults of NCCL's ``init.cc``: an assumption."""

CPU_OVERHEAD = 25 * 10**6
"""Bytes that the libraries allocate at the first step, without the gaps in the C library's heap: measured."""


@dataclass(frozen=True)
class Devices:
    """Devices of a run: a process on each of several GPUs, or processes on a CPU."""

    on_gpu: bool
    processes: int = 1
    shards: int = 1  # processes that share the decoder layers' frozen weights


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the peak of a step."""

    weights: int  # the frozen base
    packed: int  # copies of its layers on a CPU, in the order that products read: `moslora.kernels.linear`
    adapters: int  # in float32
    gradients: int  # in float32; with several processes also the buffer in which they are added up
    optimizer: int  # AdamW's two moments, and a rank budget's two running means
    activations: int  # what autograd keeps for the backward pass
    temporary: int  # what is freed within the step, at its peak: logits, gradients of activations, unpacked weights
    # Three times the largest decoder layer, where weights are sharded: ``wait_for_unshard`` in torch's
    # ``_fsdp_param_group.py`` copies a layer out of one flat buffer while it still holds the last layer's.
    gathered: int
    overhead: int  # of the framework
    loading: int = 0  # more than all this, while a quantised base that will be sharded is still whole on each device

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return sum(getattr(self, field.name) for field in fields(self))


def memory(
    model: PreTrainedModel,
    section: ModelSection,
    work: Work,
    devices: Devices,
    *,
    rank_budget: bool = False,
) -> Memory:
    """Compute the memory on each device of training with micro-batches of the size that ``work`` has."""
    on_gpu = devices.on_gpu
    shards = devices.shards
    layers, outside, unpacked = _base(model, section)
    own = own_parameters(model)
    trained = sum(weight.numel() for weight in own if weight.requires_grad)
    gradients = 4 * trained
    optimizer = 8 * trained
    overhead = CUDA_OVERHEAD if on_gpu else CPU_OVERHEAD
    packed = 0
    gathered = 0
    if devices.processes > 1:
        gradients *= 2
        if on_gpu:
            overhead += NCCL_BUFFERS
    if rank_budget:
        optimizer *= 2
    if shards > 1:
        gathered = 3 * max(layers)
    elif not on_gpu:
        packed = _packed_copies(model, section)
    dtype = DTYPES[section.dtype]
    checkpointing = section.gradient_checkpointing
    activations, temporary = measure(model, work, dtype=dtype, checkpointing=checkpointing, on_gpu=on_gpu)
    whole = outside + sum(layers) + unpacked
    if checkpointing and section.quantization == "nf4":  # half a byte an entry: all of a layer, until its backward pass
        unpacked = 2 * dtype.itemsize * max(layers)
        if multiplied_twice(model):
            unpacked *= 2
    buffers: set[Tensor] = set()  # of which several layers may share one
    for layer, _ in adapted_layers(model).values():
        buffers.update(layer.buffers())
    step = Memory(
        weights=outside + sum(layers) // shards,
        packed=packed,
        adapters=4 * (sum(weight.numel() for weight in own) + sum(buffer.numel() for buffer in buffers)),
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        temporary=temporary + unpacked,
        gathered=gathered,
        overhead=overhead,
    )
    if not section.quantization:
        return step
    return replace(step, loading=max(0, whole + step.adapters + overhead - step.total))


def _packed_copies(model: PreTrainedModel, section: ModelSection) -> int:
    """Bytes of the weights that a CPU keeps a second time, in the order that its products read."""
    dtype = DTYPES[section.dtype]
    if section.quantization or kernel(torch.device("cpu"), dtype) != PACKED:
        return 0
    decoder = model.get_decoder()  # without the output layer, which training computes in pieces
    return dtype.itemsize * sum(layer.weight.numel() for layer in packed_layers(decoder))


def largest_budget(work: Work, *, room: int, need: Callable[[Work], Memory]) -> int | None:
    """Maximum number of tokens in a micro-batch for which ``need`` stays within ``room`` bytes: all tokens of ``work``
    if they fit, otherwise a multiple of 64; ``None`` if even the longest row does not fit."""
    longest = work.lengths[-1]
    if need(work).total <= room:
        return work.tokens
    if need(work.limited_to(longest)).total > room:
        return None
    fitting = bisect(range(64, work.tokens, 64), room, key=lambda tokens: need(work.limited_to(tokens)).total)
    return max(longest, 64 * fitting)


def _base(model: PreTrainedModel, section: ModelSection) -> tuple[list[int], int, int]:
    """Return bytes of the base: of each decoder layer, of what is not sharded, of its largest weight once unpacked.

    Weights outside of the layers are not sharded, nor are quantisation's constants, as they are no parameters. A
    product unpacks the whole of a quantised weight first. In a quantised base all linear layers but the output layer
    are quantised.
    """
    own = own_parameters(model)
    quantized: set[Tensor] = set()
    if section.quantization:
        output = model.get_output_embeddings()
        linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer is not output]
        quantized = {layer.weight for layer in linear}
    layers = Counter[str]()
    outside = 0
    unpacked = 0
    for name, weight in model.named_parameters():
        if weight in own:
            continue
        size = DTYPES[section.dtype].itemsize * weight.numel()
        if weight in quantized:
            unpacked = max(unpacked, size)
            size, constants = _quantized(weight, section)
            outside += constants
        layer = re.match(r".*?\.\d+\.", name)
        if layer:
            layers[layer[0]] += size
        else:
            outside += size
    return list(layers.values()), outside, unpacked


def _quantized(weight: Tensor, section: ModelSection) -> tuple[int, int]:
    """Return bytes of a quantised weight and of its constants, as bitsandbytes 0.50 stores them.

    int8: a byte per entry, a float32 per row. NF4: half a byte per entry, a code book of 16 float32, and a scale for
    each block of 64: a float32, or with double quantisation a byte, with a float32 per 256 scales, a code book of 256
    and an offset.
    """
    if section.quantization == "int8":
        return weight.numel(), 4 * weight.shape[0]
    scales = math.ceil(weight.numel() / 64)
    constants = scales + 4 * (math.ceil(scales / 256) + 256 + 1) if section.double_quantization else 4 * scales
    return math.ceil(weight.numel() / 2), 4 * 16 + constants
