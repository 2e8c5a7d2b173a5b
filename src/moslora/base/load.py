"""Loading of the base model and its tokenizer."""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar
from transformers.utils.peft_utils import find_adapter_config_file

from moslora.base.engine_choice import choose_engine
from moslora.base.failures import UnsupportedModel, loading
from moslora.base.quantized import fix_layers, quantization_config
from moslora.base.resolve import ADAPTER, locate
from moslora.choices import DType
from moslora.console import note_once
from moslora.errors import MosloraError, UsageError, some
from moslora.processes.devices import device as own_device
from moslora.processes.devices import multiplies_bfloat16, say_device
from moslora.recipe import ModelSection

Value = TypeVar("Value")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""torch's dtype for each name in a recipe."""


def load_tokenizer(section: ModelSection) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the model that ``section`` names."""
    source = locate(section.name, revision=section.revision)
    with loading(section.name, "tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, revision=section.revision, trust_remote_code=section.trust_remote_code
        )
    return tokenizer


def load_base(
    section: ModelSection, *, device: torch.device | str = "cpu", computed_here: bool = True
) -> PreTrainedModel:
    """Load the model of ``section`` (:func:`read_base`) and choose its engine, to be computed without adapters."""
    model = read_base(section, device=device, computed_here=computed_here)
    choose_engine_of(model, section, computed_here=computed_here)
    return model


def choose_engine_of(model: PreTrainedModel, section: ModelSection, *, computed_here: bool = True) -> None:
    """Choose the engine (:func:`choose_engine`) of a model of ``section``, perhaps with adapters."""
    try:
        choose_engine(model, section.engine, computed_here=computed_here, trust_remote_code=section.trust_remote_code)
    except UnsupportedModel as fault:
        raise UsageError(f"model.name = {section.name}: {fault}; choose another model") from None


def read_base(
    section: ModelSection, *, device: torch.device | str = "cpu", computed_here: bool = True
) -> PreTrainedModel:
    """Load the causal language model of ``section`` on ``device``: frozen, in evaluation mode, with transformers'
    modules.

    The output layer and the embeddings, tied or not, are never quantised. ``computed_here`` is false where the model
    will be sharded over other devices before anything is computed.

    Raises:
        UsageError: the device does not have its dtype.
        MosloraError: it cannot be loaded, or its weights do not fit its config.
    """
    device = torch.device(device)
    computing = device if computed_here else own_device()
    say_device(computing.type)
    _judge_dtype(section.dtype, computing)
    model = _read_model(section, device)
    if section.quantization:
        fix_layers(model, on_cpu=device.type == "cpu", recomputed=section.gradient_checkpointing)
    else:
        model.to(device)  # type: ignore[arg-type]
    if section.gradient_checkpointing:
        recompute_layers(model)
    return model.requires_grad_(False).eval()


def _judge_dtype(dtype: DType, computing: torch.device) -> None:
    """Refuse a dtype that the computing device does not have, and note one that is slow there."""
    if dtype == "float32":
        return
    multiplied = dtype == "bfloat16" and multiplies_bfloat16(computing)
    if computing.type == "cpu" and not multiplied:
        note_once(f"model.dtype = {dtype}: slow here, as this processor has no bfloat16 arithmetic; float32 is faster")
    elif dtype == "bfloat16" and not multiplied:
        raise UsageError("model.dtype = bfloat16: this GPU has no bfloat16; use model.dtype=float16")


def _read_model(section: ModelSection, device: torch.device) -> PreTrainedModel:
    """Return transformers' model, whose config and weights are checked. It is on ``device`` if that is a GPU, or if it
    is quantised."""
    options: dict[str, Any] = {"revision": section.revision, "trust_remote_code": section.trust_remote_code}
    on_cpu = device.type == "cpu"
    placement: dict[str, Any] = {}
    if section.quantization:
        placement["quantization_config"] = quantization_config(section, on_cpu=on_cpu)
    if section.quantization or not on_cpu:
        # Straight to the GPU, not through the host's memory. bitsandbytes would take the first, for the CPU too.
        placement["device_map"] = {"": device}
    source = locate(section.name, revision=section.revision)
    with loading(section.name, "model"):
        config = AutoConfig.from_pretrained(source, **options)
        fault = None
        if getattr(config, "quantization_config", None) is not None:
            fault = "its weights are already quantised; use the original, and set model.quantization"
        if find_adapter_config_file(source, revision=section.revision) is not None:
            fault = f"has an adapter beside its weights ({ADAPTER}); choose a model without one"
        if fault:
            raise UsageError(f"model.name = {section.name}: {fault}")
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=DTYPES[section.dtype],  # transformers 5 otherwise takes the checkpoint's
            use_safetensors=True,
            use_kernels=False,  # transformers 5.25 would download compiled code from the hub, and run it
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that all are named below
            **placement,
            **options,
        )
    disable_progress_bar()  # a command shows one, of its first load
    model: PreTrainedModel
    model, info = loaded
    _refuse_unfit(section.name, info)
    return model


def recompute_layers(model: PreTrainedModel) -> None:
    """Turn gradient checkpointing on, in its non-reentrant form: the reentrant form sees frozen inputs and drops our
    gradients."""
    renamed = getattr(model, "activation_checkpointing_enable", None)  # since transformers 5.24
    (renamed or model.gradient_checkpointing_enable)({"use_reentrant": False})


def _refuse_unfit(name: str, info: Mapping[str, Any]) -> None:
    """Refuse a model some of whose weights are random.

    transformers draws tensors at random that the checkpoint lacks, or has in another shape than the model.
    """
    faults = [f"{key} is missing" for key in sorted(info["missing_keys"])]
    for key, stored, expected in sorted(info["mismatched_keys"]):
        faults.append(f"{key} has shape {tuple(stored)}, the model {tuple(expected)}")
    if faults:
        raise MosloraError(
            f"model.name = {name}: its weights do not fit its config.json: {some(faults, separator='; ')};"
            " download the model again, or choose another"
        )


def stored_names(model: PreTrainedModel) -> dict[str, str]:
    """Map weights to their names in the files where these differ, as in multimodal models, whose weights transformers
    renames while it loads them.

    A weight that the files hold in several pieces, such as the experts of a layer, is left out.
    """
    weights = {}
    for name, weight in model.named_parameters():
        if weight.ndim <= 2:  # neither experts of a layer nor an image encoder's convolutions
            weights[name] = torch.empty(weight.shape, device="meta")
    if revert_weight_conversion(model, weights) is weights:  # none is renamed; weight by weight it takes seconds
        return {}
    names = {}
    for name, empty in weights.items():
        stored = [*revert_weight_conversion(model, {name: empty})]
        if len(stored) == 1 and stored != [name]:
            names[name] = stored[0]
    return names


def in_files(layers: Mapping[str, Value], stored: Mapping[str, str]) -> dict[str, Value]:
    """Return ``layers`` by the names of their weights in the files; ``stored`` is from `stored_names`.

    Raises:
        UsageError: the weights of two layers are one tensor in the files, into which no adapter can be merged.
    """
    by_key: dict[str, Value] = {}
    for name, value in layers.items():
        key = stored.get(f"{name}.weight", f"{name}.weight")
        if key in by_key:
            raise UsageError(
                f"adapter.target_modules: {name} is part of {key} in the model's files, which moslora cannot"
                " merge into; leave such layers out"
            )
        by_key[key] = value
    return by_key
