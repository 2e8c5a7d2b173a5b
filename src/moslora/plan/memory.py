"""Bytes that training needs on each device, from the shapes of a model on the meta device."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moslora.adapters import AdapterLinear, named_adapters
from moslora.base.load import DTYPES
from moslora.kernels.linear import PACKED, kernel, packed_layers
from moslora.plan.activations import Work, block_of, kept, loss_needs
from moslora.recipe import ModelSection

CUDA_OVERHEAD = 10**9
"""The context, the libraries' workspaces and the gaps between allocations on a GPU: an assumption."""

NCCL_BUFFERS = 6 * 10**8
"""Of several GPUs, on each: for 32 channels a ring's and a tree's connection of 9.6 MB, by the defaults of NCCL's
``init.cc``: an assumption."""

CPU_OVERHEAD = 25 * 10**6
"""What the libraries set up at the first step, without the gaps that the C library's heap leaves: measured."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device when a step needs most.

    Attributes:
        weights: the frozen base.
        packed: on a CPU the copies of its layers in the order that products read, `moslora.kernels.linear`.
        adapters: in float32.
        gradients: in float32; with several processes also the buckets in which they are exchanged.
        optimizer: AdamW's two moments, and a rank budget's two running means.
        activations: what autograd keeps for the backward pass.
        temporary: the most of what comes and goes: logits, gradients of activations, an unpacked weight.
        gathered: where weights are sharded, three times the largest decoder layer: ``wait_for_unshard`` in torch's
            ``_fsdp_param_group.py`` copies a layer out of one flat buffer while it still holds the last layer's.
        overhead: of the framework.
        loading: where a quantised base is sharded, what a device that has it whole first needs beyond all of this.
    """

    weights: int
    packed: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    temporary: int
    gathered: int
    overhead: int
    loading: int = 0

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
    """What each of ``processes`` devices needs; ``shards`` of them share the decoder layers' frozen weights."""
    blocks = _blocks(model, section)
    outside, unpacked = blocks.pop(""), _unpacked(model, section)
    held = sum(tensor.numel() for _, layer in named_adapters(model) for tensor in _own(layer))
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    activations, backward = kept(model, section, work, on_gpu=on_gpu)
    temporary = max(backward, loss_needs(model, section, work, on_gpu=on_gpu))
    step = Memory(
        weights=outside + sum(blocks.values()) // shards,
        packed=0 if on_gpu or shards > 1 else _copies(model, section),
        adapters=4 * held,
        gradients=4 * trained * (2 if processes > 1 else 1),
        optimizer=8 * trained * (2 if rank_budget else 1),
        activations=activations,
        temporary=temporary + unpacked,
        gathered=3 * max(blocks.values()) if shards > 1 else 0,
        overhead=CUDA_OVERHEAD + NCCL_BUFFERS * (processes > 1) if on_gpu else CPU_OVERHEAD,
    )
    whole = outside + sum(blocks.values()) + step.adapters + unpacked + step.overhead
    return replace(step, loading=max(0, whole - step.total) if section.quantization else 0)


def largest_budget(work: Work, *, room: int, need: Callable[[Work], Memory]) -> int | None:
    """The most tokens of a micro-batch for which ``need`` stays within ``room`` bytes.

    All of ``work``'s if they fit, otherwise a multiple of 64; ``None`` if even the longest row does not fit.
    """

    def fits(tokens: int) -> bool:
        return need(work.of(tokens)).total <= room

    if fits(work.tokens):
        return work.tokens
    low, high = work.longest, work.tokens
    if not fits(low):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return max(work.longest, low // 64 * 64)


def _own(layer: AdapterLinear) -> Iterator[Tensor]:
    """The tensors of an adapter without its base."""
    base = {id(tensor) for tensor in (*layer.base.parameters(), *layer.base.buffers())}
    yield from (tensor for tensor in (*layer.parameters(), *layer.buffers()) if id(tensor) not in base)


def _blocks(model: PreTrainedModel, section: ModelSection) -> dict[str, int]:
    """Bytes of the base's weights in each decoder layer, and of what is not sharded: all outside of them, and
    quantisation's constants, which are no parameters."""
    width, sizes = DTYPES[section.dtype].itemsize, defaultdict[str, int](int)
    own = {id(tensor) for _, layer in named_adapters(model) for tensor in _own(layer)}
    packed = {id(layer.weight) for layer in _quantized(model, section)}
    for name, weight in model.named_parameters():
        if id(weight) not in own:
            codes, constants = _packed(weight, section) if id(weight) in packed else (width * weight.numel(), 0)
            sizes[block_of(name)] += codes
            sizes[""] += constants
    return sizes


def _copies(model: PreTrainedModel, section: ModelSection) -> int:
    """The packed copies of the frozen layers."""
    dtype = DTYPES[section.dtype]
    if section.quantization is not None or kernel(torch.device("cpu"), dtype) != PACKED:
        return 0
    return dtype.itemsize * sum(layer.weight.numel() for layer in packed_layers(model))


def _packed(weight: Tensor, section: ModelSection) -> tuple[int, int]:
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


def _quantized(model: PreTrainedModel, section: ModelSection) -> list[nn.Linear]:
    """The layers that are quantised: all linear ones but the output layer."""
    if section.quantization is None:
        return []
    output = model.get_output_embeddings()
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer is not output]


def _unpacked(model: PreTrainedModel, section: ModelSection) -> int:
    """A product with a quantised weight unpacks all of it first."""
    width = DTYPES[section.dtype].itemsize
    return max((width * layer.weight.numel() for layer in _quantized(model, section)), default=0)
