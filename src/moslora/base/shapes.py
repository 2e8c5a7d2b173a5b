"""The shapes of the Llama family: models to count parameters of, without weights or a hub."""

import os
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from moslora.base.load import loading
from moslora.base.resolve import BUILTIN, locate
from moslora.recipe import ModelSection

_KEYS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("vocab_size", "tie_word_embeddings"),
)
_SHAPES = {
    "Meta-Llama-3-8B": (4096, 14336, 32, 32, 8, 128256, False),
    "Meta-Llama-3-70B": (8192, 28672, 80, 64, 8, 128256, False),
    "Llama-3.2-1B": (2048, 8192, 16, 32, 8, 128256, True),
    "Llama-3.2-3B": (3072, 8192, 28, 24, 8, 128256, True),
    BUILTIN: (576, 1536, 30, 9, 3, 49152, True),
}
LLAMA_SHAPES: dict[str, dict[str, Any]] = {
    name: dict(zip(_KEYS, shape, strict=True)) for name, shape in _SHAPES.items()
}
"""Of `LlamaConfig`, by the last part of the hub id."""


def meta_model(section: ModelSection) -> PreTrainedModel:
    """The model's modules without its weights, on the meta device.

    From a local folder's ``config.json``, or else :data:`LLAMA_SHAPES` (``-Instruct`` and the 3.1 releases share the
    shapes of their bases), or else the hub's ``config.json``.
    """
    name, code = section.name, {"trust_remote_code": section.trust_remote_code}
    short = name.rpartition("/")[2].removesuffix("-Instruct").replace("Llama-3.1-", "Meta-Llama-3-")
    short = short.replace("Meta-Meta-", "Meta-")
    if short in LLAMA_SHAPES and not os.path.isdir(os.path.expanduser(name)):
        config = LlamaConfig(**LLAMA_SHAPES[short])
    else:
        source = locate(name, revision=section.revision)
        with loading(name, "config.json"):
            config = AutoConfig.from_pretrained(source, revision=section.revision, **code)
    with loading(name, "model"), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, **code)
    return model
