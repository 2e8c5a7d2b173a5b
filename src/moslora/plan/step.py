"""Bytes that a forward and backward pass keeps and needs, measured by the real training step on tensors without data.

For a GPU the tensors are on the meta device, where every kernel is a GPU's. For a CPU they are torch's fake tensors,
under which every kernel is this CPU's. docs/plan.md has a worked example.
"""

import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from moslora.adapters import AdapterLinear, SharedInputLayers, named_adapters
from moslora.base.adapted import own_parameters
from moslora.base.engines import engine_of
from moslora.base.load import recompute_layers
from moslora.data.encode import IGNORE_INDEX, Encoded
from moslora.data.steps import collate, default_micro_batch_tokens
from moslora.kernels.linear import pack_nothing
from moslora.training.objective import LabelLoss


@dataclass(frozen=True)
class Work:
    """Rows that a process computes in one step, or in its largest micro-batch."""

    lengths: tuple[int, ...]  # tokens of each row, ascending
    labelled: float  # share of the tokens that have a label

    @property
    def tokens(self) -> int:
        """Number of tokens of all these rows."""
        return sum(self.lengths)

    def limited_to(self, tokens: int) -> "Work":
        """Return the longest rows that have at most ``tokens`` tokens together, or the longest row alone."""
        count = sum(total <= tokens for total in accumulate(reversed(self.lengths)))
        return replace(self, lengths=self.lengths[-max(1, count) :])


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Decoder layers of ``model``; empty if its code names them differently, so that the whole model is measured."""
    layers: nn.ModuleList = getattr(model.get_decoder(), "layers", nn.ModuleList())
    return layers


def multiplied_twice(model: PreTrainedModel) -> list[AdapterLinear]:
    """Adapted layers that multiply by their frozen weight twice in a pass: DoRA's, where dropout acts."""
    return [layer for _, layer in named_adapters(model) if layer.magnitude is not None and layer.dropout.p]


@lru_cache(maxsize=32)
def measure(
    model: PreTrainedModel, work: Work, *, dtype: torch.dtype, checkpointing: bool, on_gpu: bool
) -> tuple[int, int]:
    """Measure the bytes that a pass over ``work`` keeps until the backward pass, and the most that it needs besides
    them.

    Work beyond the default micro-batch is measured at that size and scaled up. ``model`` is on the meta device and is
    not changed; ``dtype`` is that of the base and of the computation.

    Raises:
        NotImplementedError: the model routes tokens to experts.
        RuntimeError: the model's code reads values of tensors, which do not exist on the meta device.
        UsageError: the model cannot be trained here.
    """
    config = model.config.get_text_config(decoder=True)
    if any(hasattr(config, key) for key in ("num_experts", "num_local_experts", "n_routed_experts")):
        raise NotImplementedError("routes its tokens to experts")
    engine = engine_of(model)
    if engine.pads:  # every row to the longest, and a mask would ask for the data
        work = replace(work, lengths=(max(work.lengths),) * len(work.lengths))
    part = work.limited_to(default_micro_batch_tokens(on_gpu=on_gpu))
    few, counts = _one_layer_of_each_kind(model, dtype)
    with _Live() as live, SharedInputLayers(model).folded(dtype):
        factors = live.bytes  # of all layers, as they are folded at once
    if on_gpu:
        place = "meta"
        kernels: AbstractContextManager[Any] = nullcontext()
    else:
        place = "cpu"
        kernels = FakeTensorMode(allow_non_fake_inputs=True)
    with kernels:
        few.to_empty(device=place)
    with kernels, _Live() as live, SharedInputLayers(few).folded(dtype):
        if checkpointing:
            recompute_layers(few)
        few.enable_input_require_grads()  # as in all layers but the first, the input has a gradient
        for weight in few.parameters():
            if weight.requires_grad:  # its gradient, which only the first step of a run has to allocate
                weight.grad = torch.zeros_like(weight)
        objective = LabelLoss(few).train()
        batch = collate(_rows(part), device=few.device, build_batch=engine.build_batch)
        with torch.no_grad():
            objective(replace(batch, predicted_from=[], labels=batch.labels[:0]))  # finds what all layers share
        before = live.bytes
        of_layer = _bytes_that_forward_keeps(counts, live)
        live.peak = before
        loss, penalty = objective(batch)
        kept = live.bytes - before
        of_other_layers = sum((count - 1) * of_layer[layer] for layer, count in counts.items())
        (loss + penalty).backward()
    temporary = live.peak - before - kept
    activations = (kept + of_other_layers) * work.tokens // part.tokens
    return factors + activations, temporary * work.tokens // part.tokens


def _one_layer_of_each_kind(model: PreTrainedModel, dtype: torch.dtype) -> tuple[PreTrainedModel, dict[nn.Module, int]]:
    """Copy ``model``, with the base in ``dtype`` and one of all equal decoder layers; return each copied layer with the
    number of layers that it represents."""
    layers = decoder_layers(model)
    kinds = {repr(layer): layer for layer in layers}
    counts = Counter(repr(layer) for layer in layers)
    copies: dict[int, Any] = {}
    one_of_each = deepcopy(nn.ModuleList(kinds.values()), copies)
    copies[id(layers)] = one_of_each  # so that the model's copy has these in place of all layers
    few = deepcopy(model, copies)
    pack_nothing(few)
    for weight in {*few.parameters()} - own_parameters(few):
        weight.data = weight.data.to(dtype)
    return few, {layer: counts[kind] for layer, kind in zip(one_of_each, kinds, strict=True)}


def _rows(work: Work) -> list[Encoded]:
    """Build rows of these lengths, the last tokens of which have labels."""
    rows = []
    for length in work.lengths:
        labelled = round(work.labelled * length)
        labels = [IGNORE_INDEX] * (length - labelled) + [0] * labelled
        rows.append(Encoded("", "", [0] * length, labels, truncated=False))
    return rows


def _bytes_that_forward_keeps(layers: Iterable[nn.Module], live: "_Live") -> Mapping[nn.Module, int]:
    """Hook ``layers`` to fill the returned mapping, from a layer to the bytes that its forward pass leaves alive."""
    kept = Counter[nn.Module]()

    def before(layer: nn.Module, _: Any) -> None:
        kept[layer] -= live.bytes

    def after(layer: nn.Module, _: Any, __: Any) -> None:
        kept[layer] += live.bytes

    for layer in layers:
        layer.register_forward_pre_hook(before)
        layer.register_forward_hook(after)
    return kept


class _Live(TorchDispatchMode):
    """Counter of the bytes of the tensors that are created within the block: those alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function == torch.ops.aten.poisson.default:  # how many entries a CPU drops; here as many as on average
            return args[0]
        if function.name() == "aten::_local_scalar_dense" and args[0].is_meta and args[0].dtype == torch.bool:
            return True  # transformers asks whether all rows are whole
        kwargs = kwargs or {}
        made = function(*args, **kwargs)
        existing = {id(tensor.untyped_storage()) for tensor in _tensors((args, kwargs))}
        for tensor in _tensors(made):
            storage = tensor.untyped_storage()  # one object for all tensors that share it
            if id(storage) not in existing:
                existing.add(id(storage))
                weakref.finalize(storage, self._count, -storage.nbytes())
                self._count(storage.nbytes())
        return made

    def _count(self, size: int) -> None:
        self.bytes += size
        self.peak = max(self.peak, self.bytes)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
