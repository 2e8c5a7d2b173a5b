"""Factors of all adapters, folded, scaled and cast at once for a pass; layers that read the same x share a product.

It replaces the folding of each layer by itself, on every device: a GPU takes as long to start a kernel as to fold one
layer's factors. The factors of similar layers, one of each decoder layer, are stacked, and each operation computes all
of them. All gradients therefore exist only at the end of the backward pass.

Several machines exchange the gradients of some decoder layers while others are computed. There the layers are folded in
parts, each just before its first layer computes. Autograd runs through the operations in reverse
order, so it reaches the fold of a part before the layers that precede this part.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from moslora.adapters.factors import Factors
from moslora.adapters.injection import named_adapters
from moslora.adapters.linear import AdapterLinear
from moslora.kernels.plain import disabled_kernels

READ_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of layers that read the same x if they belong to one module."""


class Family(nn.ModuleList):
    """Layers that read the same x and drop the same entries of it."""

    def forward(self: Any, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Return A of all layers, stacked, ``(layers · r, in_features)``, and B of each, ``(out_features, r)``, in
        ``dtype``.

        The factors are scaled, see :meth:`AdapterLinear.scaled_factors`.
        """
        a, b = zip(*(layer.scaled_factors() for layer in self), strict=True)
        return torch.cat(a).to(dtype), *(factor.to(dtype) for factor in b)

    def weights(self) -> dict[str, Tensor]:
        """Weights of the factors by name: A, B, and the parameters and buffers of the mixers."""
        tensors = (*self.named_parameters(), *self.named_buffers())
        return {name: tensor for name, tensor in tensors if ".lora_" in name or ".mixer." in name}


Alike = Sequence[tuple[Family, dict[str, Tensor]]]
"""Families that differ only in their weights, each with its weights."""


class SharedInputLayers:
    """Adapters of ``model`` in families of layers that read the same x, to be folded together.

    Layers whose context is ``plain`` are left out. The model's layers and weights must stay the same objects.

    Args:
        model: a model with adapters.
        parts: number of parts to fold one after another; must be 1 with gradient checkpointing.
    """

    def __init__(self, model: nn.Module, *, parts: int = 1) -> None:
        self._layers = {name: layer for name, layer in named_adapters(model) if not layer.context.plain}
        by_input = defaultdict[Hashable, list[AdapterLinear]](list)
        for name, layer in self._layers.items():
            parent, _, last = name.rpartition(".")
            together = next((names for names in READ_TOGETHER if last in names), last)
            by_input[parent, together, _kind(layer)].append(layer)
        alike = defaultdict[Hashable, list[tuple[Family, dict[str, Tensor]]]](list)
        for layers in by_input.values():
            family = Family(layers)
            shapes_of_b = tuple(layer.lora_b.shape for layer in layers)
            alike[_kind(layers[0]), shapes_of_b].append((family, family.weights()))
        self._parts: list[list[Alike]] = [[] for _ in range(parts)]
        for families in alike.values():
            size = -(-len(families) // parts)
            for number, begin in enumerate(range(0, len(families), size)):
                self._parts[number].append(families[begin : begin + size])

    @contextmanager
    def folded(self, dtype: torch.dtype) -> Iterator[None]:
        """Within the block, let layers with a common input use factors that were folded together once, in ``dtype``.

        The first part of the layers is folded on entry, each later part when a layer of it is first called. Except for
        dropout, the results equal those of each layer by itself. Within the block the weights must not change, and at
        most one backward pass may run.
        """
        try:
            if "adapters" not in disabled_kernels():
                first, *later = self._parts
                _fold_part(first, dtype)
                for part in later:
                    fold = partial(_fold_part, part, dtype)
                    for layer in _layers_of(part):
                        layer.context.folds[layer] = fold
            yield
        finally:
            for layer in self._layers.values():
                layer.context.factors.pop(layer, None)
                layer.context.folds.pop(layer, None)


def _layers_of(part: Iterable[Alike]) -> Iterator[AdapterLinear]:
    for alike in part:
        for family, _ in alike:
            layers: Any = family
            yield from layers


def _fold_part(part: Sequence[Alike], dtype: torch.dtype) -> None:
    for layer in _layers_of(part):
        layer.context.folds.pop(layer, None)
    for alike in part:
        _fold(alike, dtype)


def _fold(alike: Alike, dtype: torch.dtype) -> None:
    """Fold the factors of families (layers with a common input) of equal shapes together, and store them for the pass
    in the layers' context."""
    first_family, first_weights = alike[0]
    stacked = {}
    for name in first_weights:
        stacked[name] = torch.stack([weights[name] for _, weights in alike])
    fold_one = partial(torch.func.functional_call, first_family)
    stacked_factors = torch.func.vmap(fold_one, in_dims=(0, None))(stacked, (dtype,))
    of_each_family = zip(*(factor.unbind() for factor in stacked_factors), strict=True)
    for (family, _), (a, *b) in zip(alike, of_each_family, strict=True):
        factors = Factors(a, *b)
        layers: Any = family
        for place, layer in enumerate(layers):
            layer.context.factors[layer] = (factors, place)


def _kind(layer: AdapterLinear) -> Hashable:
    """Key that is equal for layers that drop entries of x and fold A in the same way, whatever values A and M have."""
    a = layer.lora_a
    return layer.mixer.options, layer.mixer.rank_out, layer.folds, layer.scale, layer.dropout.p, a.shape, a.device
