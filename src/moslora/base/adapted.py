"""A base with the adapters of a recipe: ours, or a method of PEFT. Both kinds answer the same questions.

check     refuses what can be refused before anything is downloaded
put_into  adapts a base in place, which is frozen, and returns it (PEFT's adapters are in a ``PeftModel`` around it)
layers    the adapted layers with the base's in them, by the names that these have in the base
state     all of the adapters that a checkpoint must keep, by name
merged    the weights that a method merges by itself, by name
"""

from collections.abc import Callable, Mapping

from torch import Tensor, nn
from transformers import PreTrainedModel

from moslora.adapters import AdapterLinear, adapter_state_dict, inject, named_adapters
from moslora.base.engine import text_part
from moslora.base.peft_methods import PeftAdapters
from moslora.base.quantized import dequantize
from moslora.recipe import PeftSection, Recipe


class OwnAdapters:
    """Adapters of A, M and B; see the module's docstring."""

    def __init__(self, recipe: Recipe) -> None:
        self._options = recipe.adapter_options()
        self._seed = recipe.seed

    def check(self) -> None:
        """Nothing: the recipe was checked."""

    def put_into(self, model: PreTrainedModel, *, state: Mapping[str, Tensor] | None) -> PreTrainedModel:
        inject(model, **self._options, seed=self._seed, state=state, weight_of=dequantize, within=text_part(model))
        return model

    @staticmethod
    def layers(model: nn.Module) -> dict[str, tuple[AdapterLinear, nn.Module]]:
        return {name: (layer, layer.base) for name, layer in named_adapters(model)}

    @staticmethod
    def state(model: nn.Module) -> dict[str, Tensor]:
        return adapter_state_dict(model)

    def merged(self, load: Callable[[], PreTrainedModel]) -> dict[str, Tensor]:
        """None: W + ΔW is added up tensor by tensor."""
        return {}


def adapters_of(recipe: Recipe) -> OwnAdapters | PeftAdapters:
    """The adapters that ``recipe`` describes."""
    if isinstance(recipe.adapter, PeftSection):
        return PeftAdapters(recipe.adapter, seed=recipe.seed)
    return OwnAdapters(recipe)


def _kind_in(model: nn.Module) -> type[OwnAdapters] | type[PeftAdapters]:
    """Which adapters a model has."""
    if hasattr(model, "peft_config"):
        return PeftAdapters
    return OwnAdapters


def with_adapters(
    model: PreTrainedModel, recipe: Recipe, *, state: Mapping[str, Tensor] | None = None
) -> PreTrainedModel:
    """``model``, changed in place and frozen, with the adapters of ``recipe``; PEFT's are in a ``PeftModel`` around it.

    ``state`` are their weights, instead of a start, which is drawn from the recipe's seed.

    Raises:
        ValueError: a layer is not found or does not fit, or ``state`` does not.
        UsageError: as :func:`moslora.base.peft_methods.config_of`.
    """
    return adapters_of(recipe).put_into(model, state=state)


def adapted_layers(model: nn.Module) -> dict[str, tuple[nn.Module, nn.Module]]:
    """The adapted layers with the base's in them, by the names that these have in the base."""
    return {**_kind_in(model).layers(model)}


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """All of the adapters that a checkpoint must keep, by name."""
    return _kind_in(model).state(model)


def own_parameters(model: nn.Module) -> set[nn.Parameter]:
    """The parameters of all adapters without their bases', whether they learn or not."""
    with_bases: set[nn.Parameter] = set()
    of_bases: set[nn.Parameter] = set()
    for layer, base in adapted_layers(model).values():
        with_bases.update(layer.parameters())
        of_bases.update(base.parameters())
    return with_bases - of_bases
