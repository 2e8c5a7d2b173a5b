"""The factors of all adapters folded, scaled and cast at once for a pass, and one product of layers that read one x.

Replaces what each layer does by itself, on every device: a GPU takes as long to start a kernel as to fold one layer's
factors. Those of alike layers, one of each decoder layer, are stacked, and each operation is one for all of them. So
the gradients of all are there at the end of the backward pass, and several processes exchange them then.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from moslora.adapters.factors import Factors
from moslora.adapters.injection import named_adapters
from moslora.adapters.linear import AdapterLinear
from moslora.kernels.plain import left_out

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


class Families:
    """The adapters of ``model``, whose layers and weights stay the same objects; none that compute plainly."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = {name: layer for name, layer in named_adapters(model) if not layer.context.plain}
        found = defaultdict[Hashable, list[AdapterLinear]](list)
        for name, layer in self._layers.items():
            parent, _, last = name.rpartition(".")
            together = next((names for names in READ_TOGETHER if last in names), last)
            found[parent, together, _kind(layer)].append(layer)
        self._alike = defaultdict[Hashable, list[tuple[Family, dict[str, Tensor]]]](list)
        for layers in found.values():
            family = Family(layers)
            shapes_of_b = tuple(layer.lora_b.shape for layer in layers)
            self._alike[_kind(layers[0]), shapes_of_b].append((family, family.weights()))

    @contextmanager
    def folded(self, dtype: torch.dtype) -> Iterator[None]:
        """Folds the factors on entry, for x in ``dtype``. But for dropout, results are those of each layer by itself.

        Inside, the weights must not change, and at most one backward pass runs.
        """
        try:
            if "adapters" not in left_out():
                for families in self._alike.values():
                    _fold(families, dtype)
            yield
        finally:
            for layer in self._layers.values():
                layer.context.factors.pop(layer, None)


def _fold(alike: Sequence[tuple[Family, dict[str, Tensor]]], dtype: torch.dtype) -> None:
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
