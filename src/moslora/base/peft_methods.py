"""PEFT's methods as adapters of a recipe. PEFT is optional, and no other module imports it."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moslora.adapters.injection import refuse_misfits
from moslora.base.engines import relative_error
from moslora.base.own_engine import text_part
from moslora.base.quantized import quantized_layers
from moslora.errors import MosloraError, UsageError, capped, first_line, needing
from moslora.recipe import PeftSection

UNFIT = ("ADALORA", "ADAMSS", "ADAPTION_PROMPT", "SHADOW", "POLY", "XLORA")
"""Methods that cannot be trained here, besides those that add tokens to the prompt. docs/peft.md gives the reasons."""

UNFIT_FIELDS = (
    *("init_lora_weights=corda", "init_lora_weights=eva", "init_lora_weights=lora_ga"),
    *("kasa_config", "monteclora_config", "alora_invocation_tokens", "megatron_config", "megatron_core"),
    *("bias", "modules_to_save", "target_parameters", "trainable_token_indices"),
    *("arrow_config", "sample_at_inference", "layer_replication"),
)
"""Fields, or values of fields, that cannot be used here."""


DRAWN_FROM_THE_BASE = "_niter_"
"""Part of the name of a start that splits the base's weights with random numbers. The split is made on the CPU, so that
it is the same wherever the run is opened again."""


KIND = "adapter.peft.peft_type"
TARGETS = "adapter.target_modules"
"""Keys of a method and of its layers among its settings."""


def with_peft(model: PreTrainedModel, recipe: Any, state: Mapping[str, Tensor] | None) -> PreTrainedModel:
    """Put PEFT's adapters into ``model`` and return the ``PeftModel`` around it; see
    `moslora.base.adapted.with_adapters`."""
    section: PeftSection = recipe.adapter
    config = config_of(section)
    quantized = quantized_layers(model)
    home = model.device
    start = str(getattr(config, "init_lora_weights", ""))
    moved = home.type == "cuda" and DRAWN_FROM_THE_BASE in start
    if moved:
        model.to(torch.device("cpu"))  # type: ignore[arg-type]
    adapted = _drawn(model, section, config, recipe.seed)
    if not isinstance(config.target_modules, str):
        names = "".join(f".{name}\n" for name in adapted.targeted_module_names)
        missed = sorted(target for target in config.target_modules if f".{target}\n" not in names)
        if missed:
            raise ValueError(f"adapter.target_modules: no layer matches {', '.join(missed)}")
    inside = {*(text_part(model) or model).modules()}
    for name, (layer, _) in peft_layers(adapted).items():
        knows_4_bits = "bnb" in type(layer).__module__ or hasattr(layer, "quantization_backend")
        if name in quantized and not knows_4_bits:
            raise ValueError(f"{section.summary()}: does not support a base in 4 bits; set model.quantization: null")
        if layer not in inside:  # nothing would train it
            raise ValueError(
                f"adapter.target_modules: matches {name}, which reads no text; choose the layers by a regular"
                r" expression, such as .*language_model.*\.q_proj"
            )
    if state is not None:
        from peft import set_peft_model_state_dict

        own = peft_state(adapted)
        other_names = _state_named_by_peft(adapted).keys() - own.keys()  # PEFT saves a shared tensor under all
        state = {key: value for key, value in state.items() if key not in other_names}
        refuse_misfits(own, state)
        set_peft_model_state_dict(adapted, state)
    if moved:
        adapted.to(home)
    adapted.train(model.training)
    return adapted


def _drawn(model: PreTrainedModel, section: PeftSection, config: Any, seed: int) -> Any:
    """Return PEFT's model around ``model``, with weights drawn on the CPU even if the base is on a GPU."""
    from peft import get_peft_model

    is_planned = model.device.type == "meta"
    device = "meta" if is_planned else "cpu"
    gpus = [model.device] if model.device.type == "cuda" else []
    try:
        # The warnings are of what is done here.
        with torch.device(device), torch.random.fork_rng(gpus), warnings.catch_warnings(action="ignore"):
            torch.manual_seed(seed)  # also for what a method draws once and does not save
            return get_peft_model(model, config)
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        fault = first_line(error)
        if is_planned and isinstance(error, RuntimeError):
            fault = "needs the base's weights, so it cannot be planned without them"
        raise ValueError(f"{section.summary()}: {fault}") from None


def peft_layers(model: Any) -> dict[str, tuple[Any, Any]]:
    """Return PEFT's adapted layers by the base's names, each as a pair: PEFT's layer, and the base layer inside it."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    modules = model.get_base_model().named_modules()
    return {name: (layer, layer.get_base_layer()) for name, layer in modules if isinstance(layer, BaseTunerLayer)}


def peft_state(model: Any) -> dict[str, Tensor]:
    """Return the adapters' tensors, named as PEFT saves them. A tensor that several layers share appears once, by the
    shortest name."""
    state = _state_named_by_peft(model)
    by_place: dict[Any, str] = {}
    for key in sorted(state, key=len)[::-1]:  # so that the shortest name stays
        by_place[state[key].data_ptr(), state[key].shape] = key
    return {key: state[key] for key in by_place.values()}


def _state_named_by_peft(model: Any) -> dict[str, Tensor]:
    """Return the tensors by all the names that PEFT saves them by. A tensor that several layers share has several
    names."""
    from peft import get_peft_model_state_dict

    state: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return state


def config_of(section: PeftSection) -> Any:
    """Build the config of PEFT's class for ``section``, with its target modules.

    Raises:
        UsageError: PEFT is missing, or the method, a field or a value cannot be used; one line for each such field.
    """
    cls = _config_class(section.peft.peft_type)
    from peft.config import PeftConfig

    given = section.peft.model_dump(exclude={"peft_type"})
    shared = PeftConfig.__dataclass_fields__  # task_type, inference_mode and the like
    own_fields = [name for name in cls.__dataclass_fields__ if name not in shared]
    faults = []  # PEFT checks the values itself
    for key, value in given.items():
        if key not in own_fields:
            faults.append(f"adapter.peft.{key}: no such field; {cls.__name__} has {', '.join(own_fields)}")
        elif value and f"{key}={value}" != "bias=none" and {key, f"{key}={value}"} & {*UNFIT_FIELDS}:
            faults.append(f"adapter.peft.{key} = {value}: cannot be used here (docs/peft.md)")
    if faults:
        raise UsageError(capped(faults))
    targets = section.target_modules
    try:
        settings = {"target_modules": targets if isinstance(targets, str) else list(targets), **given}
        return cls(**settings, task_type="CAUSAL_LM")
    except (ValueError, TypeError, ImportError) as error:
        raise UsageError(f"adapter.peft: {cls.__name__}: {first_line(error)}") from None


def read_config(file: Path) -> Any:
    """Read an ``adapter_config.json``."""
    with needing("peft", "adapter.continue_from"):
        from peft import PeftConfig
    try:
        return PeftConfig.from_pretrained(str(file.parent))
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise UsageError(f"{file}: not a config that this version of PEFT can read ({first_line(error)})") from None


def is_drawn_from_the_base(settings: Mapping[str, Any]) -> bool:
    """Whether a method with these settings splits the base's weights at random, so that another seed splits them
    differently."""
    return DRAWN_FROM_THE_BASE in str(settings.get("adapter.peft.init_lora_weights"))


def peft_settings(recipe: Any) -> dict[str, Any]:
    """Return `settings_of` the recipe's method, and the seed if it decomposes the base by a random algorithm, as PiSSA
    may."""
    settings = settings_of(config_of(recipe.adapter))
    if is_drawn_from_the_base(settings):
        settings["seed"] = recipe.seed
    return settings


def settings_of(config: Any) -> dict[str, Any]:
    """Return the settings of ``config`` that decide what its weights are and compute, with PEFT's defaults, by a
    recipe's keys. What every method has, such as the base's name, and dropout, which changes no weight, are
    left out."""
    from peft.config import PeftConfig

    settings = {KIND: config.peft_type.value}
    for key, value in config.to_dict().items():
        if key in PeftConfig.__dataclass_fields__ or "dropout" in key:
            continue
        if isinstance(value, set):
            value = sorted(value)
        settings[f"adapter.peft.{key}"] = json.loads(json.dumps(value, default=str))
    settings[TARGETS] = settings.pop("adapter.peft.target_modules")
    return settings


def _config_class(kind: str) -> Any:
    """Return PEFT's config class for the method ``kind``, which must be a method that can be trained here."""
    with needing("peft", "adapter.peft"):
        from peft.config import PromptLearningConfig
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    fitting: dict[str, Any] = {}
    for name, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        if name.value not in UNFIT and not issubclass(cls, PromptLearningConfig):
            fitting[str(name.value)] = cls
    if kind in fitting:
        return fitting[kind]
    raise UsageError(f"adapter.peft.peft_type = {kind}: must be one of {', '.join(sorted(fitting))} (docs/peft.md)")


@torch.no_grad()
def merged_by_peft(adapted: Any) -> dict[str, Tensor]:
    """Merge PEFT's adapters into their layers, which changes ``adapted`` (float32), and return the layers' weights by
    name.

    Raises:
        UsageError: PEFT cannot merge this method.
        MosloraError: a merged layer maps random inputs to other outputs than the adapted one.
    """
    kind = adapted.peft_type.value
    generator = torch.Generator().manual_seed(0)
    proofs = {}
    for name, (layer, base) in peft_layers(adapted).items():
        if isinstance(base, nn.Embedding):
            x = torch.arange(len(base.weight))
        else:
            width = getattr(layer, "in_features", None) or base.weight.shape[-1]  # GPT-2's weights are transposed
            x = torch.randn(4, width, generator=generator)
        proofs[name] = (x, layer(x))
    try:
        model: nn.Module = adapted.merge_and_unload(safe_merge=True)  # in place some change a copy of weights with gaps
    except (ValueError, NotImplementedError, AttributeError) as error:
        raise UsageError(f"PEFT does not merge {kind}: {first_line(error)}; evaluate the adapter itself") from None
    weights: dict[str, Tensor] = {}
    for name, (x, expected) in proofs.items():
        merged = model.get_submodule(name)
        off = relative_error(merged(x), expected)
        if not off <= 1e-5:  # more than float32 rounds, or not a number
            raise MosloraError(
                f"PEFT's merge of {kind} is wrong: the output of {name} differs by {off:.1g} of its size; nothing was"
                " written"
            )
        weights |= {f"{name}.{key}": value for key, value in merged.state_dict().items()}
    return weights
