"""What a model's config says: shapes, to plan a run without weights or a hub, and the longest input."""

import os
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from moslora.base.failures import loading
from moslora.base.resolve import BUILTIN, locate
from moslora.recipe import ModelSection

_KEYS = (
    *("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "vocab_size", "tie_word_embeddings"),
)
_SHAPES = {  # as in each model's config.json on the hub
    "Meta-Llama-3-8B": ("llama", 4096, 14336, 32, 32, 8, 128256, False),
    "Meta-Llama-3-70B": ("llama", 8192, 28672, 80, 64, 8, 128256, False),
    "Meta-Llama-3-405B": ("llama", 16384, 53248, 126, 128, 8, 128256, False),
    "Llama-3.2-1B": ("llama", 2048, 8192, 16, 32, 8, 128256, True),
    "Llama-3.2-3B": ("llama", 3072, 8192, 28, 24, 8, 128256, True),
    "Mistral-7B-v0.3": ("mistral", 4096, 14336, 32, 32, 8, 32768, False),
    "Qwen2.5-7B": ("qwen2", 3584, 18944, 28, 28, 4, 152064, False),
    "Qwen3-8B": ("qwen3", 4096, 12288, 36, 32, 8, 151936, False),
    BUILTIN: ("llama", 576, 1536, 30, 9, 3, 49152, True),
}
SHAPES: dict[str, dict[str, Any]] = {name: dict(zip(_KEYS, shape, strict=True)) for name, shape in _SHAPES.items()}
"""Config values by the last part of the hub id. Values that are left out are transformers' defaults for the model type,
or change no shape."""


def meta_model(section: ModelSection) -> PreTrainedModel:
    """Build the model's modules without its weights, on the meta device.

    Shapes are from a local folder's ``config.json``, or else :data:`SHAPES` (shared by ``-Base``, ``-Instruct`` and the
    3.1 releases), or else the hub's ``config.json``.
    """
    name = section.name
    short = name.rpartition("/")[2].removesuffix("-Instruct").removesuffix("-Base")
    short = short.replace("Llama-3.1-", "Meta-Llama-3-").replace("Meta-Meta-", "Meta-")
    if short in SHAPES and not os.path.isdir(os.path.expanduser(name)):
        config = AutoConfig.for_model(**SHAPES[short])
    else:
        config = read_config(section)
    with loading(name, "model"), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=section.trust_remote_code)
    return model


def read_config(section: ModelSection) -> PretrainedConfig:
    """Read the model's own ``config.json``, in its folder or from the hub."""
    source = locate(section.name, revision=section.revision)
    with loading(section.name, "config.json"):
        config: PretrainedConfig = AutoConfig.from_pretrained(
            source, revision=section.revision, trust_remote_code=section.trust_remote_code
        )
    return config


def context_length(config: PretrainedConfig) -> int | None:
    """Number of tokens of a model's longest input; ``None`` if its config does not say."""
    length = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    lengths = [length if isinstance(length, int) and length > 0 else None, independent_length(config)]
    return min((length for length in lengths if length is not None), default=None)


def independent_length(config: PretrainedConfig) -> int | None:
    """Number of tokens up to which a row's positions do not depend on the longest row of its pass; ``None`` for no
    limit.

    Beyond their original context, longrope and dynamic RoPE change the frequencies of all rows of a pass.
    """
    config = config.get_text_config(decoder=True)
    ropes = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in ropes:  # otherwise by kind of layer
        ropes = {"all": ropes}
    lengths = [
        rope.get("original_max_position_embeddings") or config.max_position_embeddings
        for rope in filter(None, ropes.values())  # some layers have none
        if rope["rope_type"] == "longrope" or "dynamic" in rope["rope_type"]
    ]
    return min(lengths, default=None)
