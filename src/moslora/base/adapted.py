"""Adapters of a base model, ours or PEFT's, behind the same operations."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from moslora.adapters import adapter_state_dict, named_adapters
from moslora.adapters.injection import adapt_layers
from moslora.base.own_engine import text_part
from moslora.base.peft_methods import merged_by_peft, peft_layers, peft_settings, peft_state, with_peft
from moslora.base.quantized import dequantize
from moslora.choices import EngineName
from moslora.recipe import PeftSection, Recipe


@dataclass(frozen=True)
class Adapters:
    """Operations on the adapters of a model or of a recipe, for one kind of adapters.

    Attributes:
        put: see `with_adapters`.
        layers: see `adapted_layers`.
        state: see `adapter_state`.
        settings: returns the settings of a recipe, by key, that a run which continues its adapters must keep. For PEFT,
            it refuses a method or fields that cannot be used.
        merge: computes the merged weights in float32; ``None`` if each layer merges its own.
        engine: the only engine that computes the adapters; ``None`` if both engines do.
        packages: names of other packages whose code computes the adapters.
    """

    put: Callable[[PreTrainedModel, Any, Mapping[str, Tensor] | None], PreTrainedModel]
    layers: Callable[[Any], dict[str, tuple[nn.Module, nn.Module]]]
    state: Callable[[Any], dict[str, Tensor]]
    settings: Callable[[Any], dict[str, Any]]
    merge: Callable[[Any], dict[str, Tensor]] | None = None
    engine: EngineName | None = None
    packages: tuple[str, ...] = ()


def _put_own(model: PreTrainedModel, recipe: Any, state: Mapping[str, Tensor] | None) -> PreTrainedModel:
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


def _own_layers(model: nn.Module) -> dict[str, tuple[nn.Module, nn.Module]]:
    return {name: (layer, layer.base) for name, layer in named_adapters(model)}


def _own_settings(recipe: Recipe) -> dict[str, Any]:
    """Settings of the adapter's section; also the data's tasks, if a gate routes by task."""
    settings = section_settings(recipe.adapter)
    if recipe.adapter.gated_by_task:
        settings["data.tasks"] = list(recipe.data.tasks)
    return settings


FREE = ("continue_from", "dropout", "trains")
"""Keys of an adapter's section that say nothing about its weights, so that a run that continues it may change them."""


def section_settings(section: Any) -> dict[str, Any]:
    """Settings of an adapter's section by dotted key. A list of target modules is sorted, as its order means
    nothing."""
    values = section.model_dump(mode="json", exclude={*FREE})
    if isinstance(values["target_modules"], list):
        values["target_modules"].sort()
    return {f"adapter.{key}": value for key, value in values.items()}


OWN = Adapters(_put_own, _own_layers, adapter_state_dict, _own_settings)
PEFT = Adapters(
    with_peft,
    peft_layers,
    peft_state,
    peft_settings,
    merge=merged_by_peft,
    engine="transformers",
    packages=("peft",),
)


def adapters_of(recipe: Recipe) -> Adapters:
    """Kind of adapters that ``recipe`` describes."""
    return PEFT if isinstance(recipe.adapter, PeftSection) else OWN


def adapters_in(model: nn.Module) -> Adapters:
    """Kind of adapters that ``model`` has; ours if it has none."""
    return PEFT if hasattr(model, "peft_config") else OWN


def with_adapters(
    model: PreTrainedModel, recipe: Recipe, *, state: Mapping[str, Tensor] | None = None
) -> PreTrainedModel:
    """Put the adapters of ``recipe`` into ``model``, in place, and freeze everything else.

    Returns ``model``, or for PEFT's adapters the ``PeftModel`` around it. ``state`` are weights to start with. Without
    ``state`` the start is drawn from the recipe's seed.

    Raises:
        ValueError: a layer is not found or does not fit, or ``state`` does not fit.
        UsageError: as :func:`moslora.base.peft_methods.config_of`.
    """
    return adapters_of(recipe).put(model, recipe, state)


def adapted_layers(model: nn.Module) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Adapted layers by the base's names, each as a pair of the adapter layer and the base layer inside it."""
    return adapters_in(model).layers(model)


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Tensors of all adapters that a checkpoint must keep, by name."""
    return adapters_in(model).state(model)


def own_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Parameters of all adapters without their base layers', whether they are trained or not."""
    parameters: set[nn.Parameter] = set()
    for layer, base in adapted_layers(model).values():
        parameters |= {*layer.parameters()} - {*base.parameters()}
    return parameters
