"""The factors of all adapters folded, scaled and cast at once for a pass, and one product of layers that read one x.

Replaces what each layer does by itself, on every device: a GPU takes as long to start a kernel as to fold one layer's
factors. Those of alike layers, one of each decoder layer, are stacked, and each operation is one for all of them. So
the gradients of all are there at the end of the backward pass, and several processes exchange them then.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from moslora.adapters.injection import named_adapters
from moslora.adapters.linear import AdapterLinear, Factors

FAMILIES = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of layers that read the same x, where they are parts of one module."""


class Family(nn.ModuleList):
    """Layers that read the same x, and drop the same entries of it."""

    def forward(self: Any, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Their A one above another, and the B of each, as :meth:`AdapterLinear.scaled_factors`, in ``dtype``."""
        a, b = zip(*(layer.scaled_factors() for layer in self), strict=True)
        return torch.cat(a).to(dtype), *(factor.to(dtype) for factor in b)


class Families:
    """The adapters of ``model``, whose layers and weights stay the same objects."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = dict(named_adapters(model))
        found = defaultdict[tuple[Hashable, ...], list[AdapterLinear]](list)
        for name, layer in self._layers.items():
            parent, _, last = name.rpartition(".")
            names = next((names for names in FAMILIES if last in names), last)
            found[parent, names, _kind(layer)].append(layer)
        alike = defaultdict[Hashable, list[tuple[Family, dict[str, Tensor]]]](list)
        for (*_, kind), layers in found.items():
            family = Family(layers)
            tensors = (*family.named_parameters(), *family.named_buffers())
            weights = {name: one for name, one in tensors if ".lora_" in name or ".mixer." in name}
            alike[kind, tuple(layer.lora_b.shape for layer in layers)].append((family, weights))
        self._alike = list(alike.values())

    @contextmanager
    def folded(self, dtype: torch.dtype) -> Iterator[None]:
        """Within the block, of passes between two updates and at most one backwards, the layers have factors that are
        made at its beginning, for x in ``dtype``. But for dropout, results are those of each layer by itself."""
        try:
            for families in self._alike:
                _fold(families, dtype)
            yield
        finally:
            for layer in self._layers.values():
                layer.factors = None


def _fold(families: list[tuple[Family, dict[str, Tensor]]], dtype: torch.dtype) -> None:
    """Gives factors to families that differ in their weights alone."""
    (first, names), *_ = families
    stacked = {name: torch.stack([weights[name] for _, weights in families]) for name in names}
    made = torch.func.vmap(partial(torch.func.functional_call, first), (0, None))(stacked, (dtype,))
    for (family, _), *each in zip(families, *(part.unbind() for part in made), strict=True):
        factors = Factors(*each)
        for place, layer in enumerate(family):
            layer.factors = factors, place


def _kind(layer: AdapterLinear) -> Hashable:
    """All that decides how a layer drops entries of x and folds A, but for the weights."""
    mixer, a = layer.mixer, layer.lora_a
    known = [(name, value) for name, value in vars(mixer).items() if name[0] != "_" and not torch.is_tensor(value)]
    return type(mixer), str(known), layer.folds, layer.scale, layer.dropout.p, a.shape, a.device
