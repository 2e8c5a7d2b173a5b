"""A base with the adapters of a recipe: ours, or a method of PEFT."""

from collections.abc import Mapping

from torch import Tensor, nn
from transformers import PreTrainedModel

from moslora.adapters import adapter_state_dict, named_adapters
from moslora.adapters.injection import adapt_layers
from moslora.base.engine import text_part
from moslora.base.peft_methods import peft_layers, peft_state, with_peft
from moslora.base.quantized import dequantize
from moslora.recipe import PeftSection, Recipe


def with_adapters(
    model: PreTrainedModel, recipe: Recipe, *, state: Mapping[str, Tensor] | None = None
) -> PreTrainedModel:
    """``model``, changed in place and frozen, with the adapters of ``recipe``; PEFT's are in a ``PeftModel`` around it.

    ``state`` are their weights, instead of a start, which is drawn from the recipe's seed.

    Raises:
        ValueError: a layer is not found or does not fit, or ``state`` does not.
        UsageError: as :func:`moslora.base.peft_methods.config_of`.
    """
    if isinstance(recipe.adapter, PeftSection):
        return with_peft(model, recipe.adapter, seed=recipe.seed, state=state)
    adapt_layers(
        model,
        recipe.adapter,
        seed=recipe.seed,
        tasks=recipe.data.tasks,
        state=state,
        weight_of=dequantize,
        within=text_part(model),
    )
    return model


def is_of_peft(model: nn.Module) -> bool:
    """Whether a method of PEFT adapts ``model``."""
    return hasattr(model, "peft_config")


def adapted_layers(model: nn.Module) -> dict[str, tuple[nn.Module, nn.Module]]:
    """The adapted layers with the base's in them, by the names that these have in the base."""
    if is_of_peft(model):
        return {**peft_layers(model)}
    return {name: (layer, layer.base) for name, layer in named_adapters(model)}


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """All of the adapters that a checkpoint must keep, by name."""
    if is_of_peft(model):
        return peft_state(model)
    return adapter_state_dict(model)


def own_parameters(model: nn.Module) -> set[nn.Parameter]:
    """The parameters of all adapters without their bases', whether they learn or not."""
    parameters: set[nn.Parameter] = set()
    for layer, base in adapted_layers(model).values():
        parameters |= {*layer.parameters()} - {*base.parameters()}
    return parameters
