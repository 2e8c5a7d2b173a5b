"""The factors of all adapters folded, scaled and cast at once for a pass, and one product of layers that read one x.

Replaces what each layer does by itself, on every device: a GPU takes as long to start a kernel as to fold one layer's
factors. Those of alike layers, one of each decoder layer, are stacked, and each operation is one for all of them. So
the gradients of all are there at the end of the backward pass.

Several machines exchange the gradients of some decoder layers while those of others are computed. There the layers are
folded in parts, one after another, each before its first layer computes: autograd goes back in the order in which the
operations came, and so through a part's fold before the layers in front of it.
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
"""Names of layers that read the same x, where they are parts of one module."""


class Family(nn.ModuleList):
    """Layers that read the same x, and drop the same entries of it."""

    def forward(self: Any, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Their A one above another, and the B of each, as :meth:`AdapterLinear.scaled_factors`, in ``dtype``."""
        a, b = zip(*(layer.scaled_factors() for layer in self), strict=True)
        return torch.cat(a).to(dtype), *(factor.to(dtype) for factor in b)

    def weights(self) -> dict[str, Tensor]:
        """What the factors are made of, by name: A, B, and the parameters and buffers of the mixers."""
        tensors = (*self.named_parameters(), *self.named_buffers())
        return {name: tensor for name, tensor in tensors if ".lora_" in name or ".mixer." in name}


Alike = Sequence[tuple[Family, dict[str, Tensor]]]
"""Families that differ in their weights alone, each with these."""


class SharedInputLayers:
    """The adapters of ``model``, whose layers and weights stay the same objects; none that compute plainly. They are
    folded in ``parts``, which gradient checkpointing allows no more than one of."""

    def __init__(self, model: nn.Module, *, parts: int = 1) -> None:
        self._layers = {name: layer for name, layer in named_adapters(model) if not layer.context.plain}
        found = defaultdict[Hashable, list[AdapterLinear]](list)
        for name, layer in self._layers.items():
            parent, _, last = name.rpartition(".")
            together = next((names for names in READ_TOGETHER if last in names), last)
            found[parent, together, _kind(layer)].append(layer)
        alike = defaultdict[Hashable, list[tuple[Family, dict[str, Tensor]]]](list)
        for layers in found.values():
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
        """Folds the factors for x in ``dtype``: on entry, or those of later parts before a layer needs them. But for
        dropout, results are those of each layer by itself.

        Inside, the weights must not change, and at most one backward pass runs.
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
    """Gives factors to families, each with its weights, that differ in these alone."""
    first_family, first_weights = alike[0]
    stacked = {}
    for name in first_weights:
        stacked[name] = torch.stack([weights[name] for _, weights in alike])
    fold_one = partial(torch.func.functional_call, first_family)
    made = torch.func.vmap(fold_one, in_dims=(0, None))(stacked, (dtype,))
    of_each_family = zip(*(factor.unbind() for factor in made), strict=True)
    for (family, _), (a, *b) in zip(alike, of_each_family, strict=True):
        factors = Factors(a, *b)
        layers: Any = family
        for place, layer in enumerate(layers):
            layer.context.factors[layer] = (factors, place)


def _kind(layer: AdapterLinear) -> Hashable:
    """All that decides how a layer drops entries of x and folds A, but for the weights."""
    a = layer.lora_a
    return layer.mixer.options, layer.mixer.rank_out, layer.folds, layer.scale, layer.dropout.p, a.shape, a.device
