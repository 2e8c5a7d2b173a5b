"""A base with the adapters of a recipe: ours, or a method of PEFT, which is optional and imported here alone."""

import json
import logging
import re
import warnings
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

import torch
from pydantic import ConfigDict, ValidationError, create_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from moslora.adapters import adapter_state_dict, inject, named_adapters
from moslora.adapters.injection import refuse_misfits
from moslora.base.engine import text_part
from moslora.base.quantized import dequantize, quantized_layers
from moslora.errors import MosloraError, UsageError, capped, first_line, needing
from moslora.recipe import PeftSection, Recipe

UNFIT = {
    **dict.fromkeys(("ADALORA", "ADAMSS"), "has to be told of every step"),
    **dict.fromkeys(("ADAPTION_PROMPT", "SHADOW"), "replaces more than the layers that take tokens one by one"),
    **dict.fromkeys(("POLY", "XLORA"), "looks at the whole batch"),
    "GLORA": "takes no layer but torch's own, and the base's are exchanged for faster ones",
    "PVERA": "draws noise for each token, and what rows begin with in common is computed once",
}
"""Methods that cannot be trained here, and why; beside those that add tokens to the prompt."""

UNFIT_FIELDS = {
    **{f"init_lora_weights={start}": "needs a pass over data first" for start in ("corda", "eva", "lora_ga")},
    **dict.fromkeys(("kasa_config", "monteclora_config"), "adds a term to the loss, which is not PEFT's here"),
    "alora_invocation_tokens": "looks at the tokens of each row, which its layers are not shown here",
    **dict.fromkeys(("megatron_config", "megatron_core"), "imports code by its name"),
    **dict.fromkeys(("bias", "modules_to_save", "target_parameters", "trainable_token_indices"), "is not merged"),
    "bias=none": "",  # fits
    "arrow_config": "needs other adapters",
    "layer_replication": "makes another model of the base",
}
"""Fields, or values of them, that cannot be used here, and why."""


DRAWN_FROM_THE_BASE = "_niter_"
"""In the name of a start that splits the base's weights with random numbers of their device. It is drawn on the CPU, so
that the base is split in the same way wherever the run is opened again."""


PLACEHOLDER = re.compile(r"(\w+)\[number of \w+\]")
"""How PEFT's types name a string that ends in a number."""


def with_adapters(
    model: PreTrainedModel, recipe: Recipe, *, state: Mapping[str, Tensor] | None = None
) -> PreTrainedModel:
    """``model``, changed in place and frozen, with the adapters of ``recipe``; PEFT's are in a ``PeftModel`` around it.

    ``state`` are their weights, instead of a start, which is drawn from the recipe's seed.

    Raises:
        ValueError: a layer is not found or does not fit, or ``state`` does not.
        UsageError: as :func:`config_of`.
    """
    if not isinstance(recipe.adapter, PeftSection):
        options = recipe.adapter_options()
        inject(model, **options, seed=recipe.seed, state=state, weight_of=dequantize, within=text_part(model))
        return model
    config, kind = config_of(recipe.adapter), f"PEFT's {recipe.adapter.peft.peft_type}"
    quantized = quantized_layers(model)
    from peft import get_peft_model, set_peft_model_state_dict

    home = model.device
    moved = home.type == "cuda" and DRAWN_FROM_THE_BASE in str(getattr(config, "init_lora_weights", ""))
    if moved:
        model.to(torch.device("cpu"))  # type: ignore[arg-type]
    place = torch.device("meta" if model.device.type == "meta" else "cpu")
    gpus = [model.device] if model.device.type == "cuda" else []
    try:
        with place, torch.random.fork_rng(gpus), warnings.catch_warnings(action="ignore"):  # of what is done here
            torch.manual_seed(recipe.seed)  # also for what a method draws once and does not save
            adapted: Any = get_peft_model(model, config)
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        planned = place.type == "meta" and isinstance(error, RuntimeError)
        said = "looks at the base's weights, and cannot be planned without" if planned else first_line(error)
        raise ValueError(f"{kind}: {said}") from None
    names = "".join(f".{name}\n" for name in adapted.targeted_module_names)
    targets = config.target_modules if isinstance(config.target_modules, list | set) else ()
    if missed := sorted(target for target in targets if f".{target}\n" not in names):
        raise ValueError(f"{kind}: no layer matches {', '.join(missed)}")
    layers = [layer for name, (layer, _) in adapted_layers(adapted).items() if name in quantized]
    if not all("bnb" in type(layer).__module__ or hasattr(layer, "quantization_backend") for layer in layers):
        raise ValueError(f"{kind} does not know a base in 4 bits; set model.quantization: null")
    text = text_part(model)
    if text is not None:
        _refuse_other_parts(adapted, text, kind)
    if state is not None:
        refuse_misfits(adapter_state(adapted), state)
        set_peft_model_state_dict(adapted, dict(state))
    if moved:
        adapted.to(home)
    adapted.train(model.training)
    return adapted


def _refuse_other_parts(adapted: Any, text: nn.Module, kind: str) -> None:
    """Refuses adapters of PEFT outside the part of a model that reads text, where nothing would train them."""
    inside = {*text.modules()}
    others = [name for name, (layer, _) in adapted_layers(adapted).items() if layer not in inside]
    if others:
        raise ValueError(
            f"{kind}: matches {others[0]}, which reads no text; choose the layers by a regular expression, such as"
            r" target_modules: .*language_model.*\.q_proj"
        )


def config_of(section: PeftSection) -> Any:
    """The config of PEFT's class for ``section``, with its target modules.

    Raises:
        UsageError: PEFT is missing; the method does not fit, or fields, one line each.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it, and it warns of optional kernels
    with needing("peft", "adapter.peft"):
        from peft.config import PeftConfig, PromptLearningConfig
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    kind, given = section.peft.peft_type, section.peft.model_dump(exclude={"peft_type"})
    kinds: dict[str, Any] = {str(name.value): cls for name, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    fitting = [name for name, cls in kinds.items() if name not in UNFIT and not issubclass(cls, PromptLearningConfig)]
    if kind not in fitting:
        why = UNFIT.get(kind, "adds tokens to the prompt" if kind in kinds else "unknown method")
        raise UsageError(f"adapter.peft.peft_type = {kind}: {why}; must be one of {', '.join(sorted(fitting))}")
    cls = kinds[kind]
    ours = PeftConfig.__dataclass_fields__  # task_type, inference_mode and the like
    types: Any = {key: (hint, None) for key, hint in get_type_hints(cls).items() if key not in ours}
    typed = create_model(cls.__name__, __config__=ConfigDict(extra="forbid", strict=True), **types)
    unfit = {key: UNFIT_FIELDS.get(f"{key}={value}", UNFIT_FIELDS.get(key)) for key, value in given.items() if value}
    faults = [f"adapter.peft.{key} = {given[key]}: {why}" for key, why in unfit.items() if why]
    declared = {key: _as_declared(value, types[key][0]) for key, value in given.items() if key in types}
    try:
        typed.model_validate_json(json.dumps({**given, **declared}))
    except ValidationError as error:
        for key, said in {str(fault["loc"][0]): fault["msg"] for fault in error.errors()}.items():
            why = said.replace("Input should", "must").replace("Extra inputs are not permitted", "no such field")
            faults.append(f"adapter.peft.{key} = {given[key]}: {why}; {cls.__name__} has {', '.join(types)}")
    if faults:
        raise UsageError(capped(faults))
    targets = section.target_modules if isinstance(section.target_modules, str) else list(section.target_modules)
    try:
        return cls(**{"target_modules": targets, **given, "task_type": "CAUSAL_LM"})
    except (ValueError, TypeError, ImportError) as error:
        raise UsageError(f"adapter.peft: {cls.__name__}: {first_line(error)}") from None


def _as_declared(value: Any, hint: Any) -> Any:
    """``value``, or where the type ``hint`` names its pattern, that name: pissa_niter_4 is a pissa_niter_[number of
    iters]."""
    for part in get_args(hint):
        if not isinstance(part, str):
            named = _as_declared(value, part)
            if named != value:
                return named
        elif (found := PLACEHOLDER.fullmatch(part)) and re.fullmatch(re.escape(found[1]) + r"\d+", str(value)):
            return part
    return value


def adapted_layers(model: Any) -> dict[str, tuple[Any, Any]]:
    """The adapted layers with the base's in them, by the names that these have in the base."""
    if not hasattr(model, "peft_config"):
        return {name: (layer, layer.base) for name, layer in named_adapters(model)}
    from peft.tuners.tuners_utils import BaseTunerLayer

    modules = model.get_base_model().named_modules()
    return {name: (one, one.get_base_layer()) for name, one in modules if isinstance(one, BaseTunerLayer)}


def own_parameters(model: nn.Module) -> set[nn.Parameter]:
    """The parameters of all adapters without their bases', whether they learn or not."""
    pairs = adapted_layers(model).values()
    return {p for layer, _ in pairs for p in layer.parameters()} - {p for _, base in pairs for p in base.parameters()}


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """All of the adapters that a checkpoint must keep. PEFT's are named as PEFT saves them; a tensor that several
    layers share is there once, by the shortest name."""
    if not hasattr(model, "peft_config"):
        return adapter_state_dict(model)
    from peft import get_peft_model_state_dict

    state: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    first = {(state[key].data_ptr(), state[key].shape): key for key in sorted(state, key=len)[::-1]}
    return {key: state[key] for key in first.values()}


@torch.no_grad()
def merged_by_peft(adapted: Any) -> dict[str, Tensor]:
    """The weights of the adapted layers with PEFT's adapters merged in, by their names; changes ``adapted`` (float32).

    Raises:
        MosloraError: PEFT cannot merge, or a merged layer maps random inputs to other outputs than the adapted one.
    """
    layers, kind, draw = adapted_layers(adapted), adapted.peft_type.value, torch.Generator().manual_seed(0)
    proofs = {}
    for name, (layer, base) in layers.items():
        ids = isinstance(base, nn.Embedding)
        width = getattr(layer, "in_features", None) or base.weight.shape[-1]  # GPT-2's weights are transposed
        x = torch.arange(len(base.weight)) if ids else torch.randn(4, width, generator=draw)
        proofs[name] = x, layer(x)
    try:
        model: nn.Module = adapted.merge_and_unload(safe_merge=True)  # in place some change a copy of weights with gaps
    except (ValueError, NotImplementedError, AttributeError) as error:
        raise UsageError(f"PEFT does not merge {kind}: {first_line(error)}; evaluate the adapter itself") from None
    for name, (x, y) in proofs.items():
        off = float((model.get_submodule(name)(x) - y).norm() / y.norm().clamp(min=1e-30))
        if not off <= 1e-5:  # more than float32 rounds, or not a number
            raise MosloraError(f"PEFT's merge of {kind} is wrong: {name} is off by {off:.1g}; nothing was written")
    return {f"{name}.{key}": value for name in layers for key, value in model.get_submodule(name).state_dict().items()}
