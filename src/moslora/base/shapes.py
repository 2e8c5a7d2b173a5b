"""The shapes of the Llama family: models to count parameters of, without weights or a hub."""

import os
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from moslora.base.load import loading
from moslora.base.resolve import BUILTIN, locate
from moslora.recipe import ModelSection

LLAMA_SHAPES: dict[str, dict[str, Any]] = {
    "Meta-Llama-3-8B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "Meta-Llama-3-70B": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "Llama-3.2-1B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "Llama-3.2-3B": {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    BUILTIN: {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
}
"""By the last part of the hub id."""


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
