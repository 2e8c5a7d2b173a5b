"""The bytes that a forward and backward pass keeps and needs: the real step of training, run on tensors without data.

For a GPU they are on the meta device, where every kernel is a GPU's; for a CPU they are torch's fake tensors, under
which every kernel is this CPU's. docs/plan.md has a worked example of what is found.
"""

import weakref
from collections import Counter
from contextlib import nullcontext
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

from moslora.adapters import Families
from moslora.base.adapted import own_parameters
from moslora.base.load import recompute_layers
from moslora.data.encode import IGNORE_INDEX, Encoded
from moslora.data.steps import collate, default_micro_batch_tokens
from moslora.kernels.linear import pack_nothing
from moslora.training.objective import LabelLoss


@dataclass(frozen=True)
class Work:
    """The largest micro-batch of a process: ascending ``lengths`` of its rows, and the share of tokens with a label."""

    lengths: tuple[int, ...]
    labelled: float

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    def of(self, tokens: int) -> "Work":
        """The longest rows that have at most ``tokens`` tokens together, or the longest alone."""
        count = sum(total <= tokens for total in accumulate(reversed(self.lengths)))
        return replace(self, lengths=self.lengths[-max(1, count) :])


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers; empty where the model's code calls them otherwise, so that none of them is taken for many."""
    layers: nn.ModuleList = getattr(model.get_decoder(), "layers", nn.ModuleList())
    return layers


@lru_cache(maxsize=32)
def measure(
    model: PreTrainedModel, work: Work, *, dtype: torch.dtype, checkpointing: bool, on_gpu: bool
) -> tuple[int, int]:
    """The bytes that a pass over ``work`` keeps until the backward pass, and the most that it needs beside them.

    More than the default micro-batch is taken as a multiple of one of that size. ``model`` is on the meta device, and
    stays as it is; ``dtype`` is the one of the base and the computation.

    Raises:
        NotImplementedError: the model routes tokens to experts.
        RuntimeError: its code asks for the data.
        UsageError: it cannot be trained here.
    """
    config = model.config.get_text_config(decoder=True)
    if any(hasattr(config, key) for key in ("num_experts", "num_local_experts", "n_routed_experts")):
        raise NotImplementedError("routes its tokens to experts")
    part = work.of(default_micro_batch_tokens(on_gpu=on_gpu))
    few, counts = _one_layer_of_each_kind(model, dtype)
    with _Live() as live, Families(model).folded(dtype):
        factors = live.bytes  # of all layers, as they are made at once
    fake = nullcontext() if on_gpu else FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        few.to_empty(device="meta" if on_gpu else "cpu")
    with fake, _Live() as live, Families(few).folded(dtype):
        if checkpointing:
            recompute_layers(few)
        few.enable_input_require_grads()  # as in all layers but the first, the input has a gradient
        for weight in few.parameters():
            weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
        labels = [round(part.labelled * n) for n in part.lengths]
        masked = [[IGNORE_INDEX] * (n - count) + [0] * count for n, count in zip(part.lengths, labels, strict=True)]
        rows = [Encoded("", "", [0] * len(row), row, truncated=False) for row in masked]
        objective, batch = LabelLoss(few).train(), collate(rows, device=few.device)
        with torch.no_grad():
            objective(replace(batch, labels=batch.labels[:0]))  # finds the places of rows, which all layers share
        before, sizes = live.bytes, Counter[nn.Module]()
        for layer in counts:
            layer.register_forward_pre_hook(lambda layer, _: sizes.update({layer: -live.bytes}))
            layer.register_forward_hook(lambda layer, _, __: sizes.update({layer: live.bytes}))
        live.peak = before
        loss, penalty = objective(batch)
        kept = live.bytes - before
        others = sum((count - 1) * sizes[layer] for layer, count in counts.items())
        (loss + penalty).backward()
    temporary = live.peak - before - kept
    return factors + (kept + others) * work.tokens // part.tokens, temporary * work.tokens // part.tokens


def _one_layer_of_each_kind(model: PreTrainedModel, dtype: torch.dtype) -> tuple[PreTrainedModel, dict[nn.Module, int]]:
    """A copy with the base in ``dtype`` and one of all decoder layers that are alike, and how many it stands for."""
    layers = decoder_layers(model)
    counts, kinds = Counter(map(repr, layers)), {repr(layer): layer for layer in layers}
    copies: dict[int, Any] = {}
    one_of_each = copies[id(layers)] = deepcopy(nn.ModuleList(kinds.values()), copies)
    few = deepcopy(model, copies)
    pack_nothing(few)
    for weight in {*few.parameters()} - own_parameters(few):
        weight.data = weight.data.to(dtype)
    return few, dict(zip(one_of_each, (counts[kind] for kind in kinds), strict=True))


class _Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are made under it: those that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function == torch.ops.aten.poisson.default:  # how many entries a CPU drops; here as many as on average
            return args[0]
        made = function(*args, **(kwargs or {}))
        known = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage())._cdata not in known:
                known.add(storage._cdata)
                weakref.finalize(storage, self._count, -storage.nbytes())
                self._count(storage.nbytes())
        return made

    def _count(self, size: int) -> None:
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
