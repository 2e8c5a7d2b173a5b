"""Small twin of a model: the same architecture with few, narrow layers and random weights, made from its config alone.

What a model does to tokens between its embeddings and its logits depends on its code and config, not on its size. So
the twin stands for a model that is sharded, quantised or only planned: in float32 on a CPU, in milliseconds.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

VOCABULARY = 200
"""Most tokens in a twin's vocabulary."""

_LAYERS = (
    *("num_hidden_layers", "num_layers", "n_layers", "n_layer"),
    *("decoder_layers", "encoder_layers", "num_decoder_layers", "num_encoder_layers"),
)
_WIDTHS = (
    *("hidden_size", "d_model", "n_embd", "emb_dim", "embedding_dim", "embedding_size", "word_embed_proj_dim"),
    *("input_embedding_size", "output_embedding_size", "attention_hidden_size", "lru_width"),
)
_INNER_WIDTHS = (
    *("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"),
    *("intermediate_size_mlp", "dense_intermediate_size", "shared_experts_intermediate_size"),
    *("moe_shared_expert_intermediate_size", "ffn_hidden_size", "expert_ffn_hidden_size", "feed_forward_size"),
    *("ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "dim_ff", "dff", "d_inner", "n_inner"),
)
_HEADS = (
    *("num_attention_heads", "swa_num_attention_heads", "attention_heads", "num_heads", "n_heads", "n_head"),
    *("decoder_attention_heads", "encoder_attention_heads"),
    *("num_decoder_attention_heads", "num_encoder_attention_heads"),
)
_KEY_HEADS = ("num_key_value_heads", "swa_num_key_value_heads", "num_global_key_value_heads", "num_kv_heads")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "zero_expert_num")
_EXPERTS_OF_A_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
_VOCABULARIES = (
    *("vocab_size", "decoder_vocab_size", "unpadded_vocab_size", "vocab_size_per_layer_input"),
    *("encoder_hash_byte_group_vocab", "ngram_vocab_size_base", "pronunciation_vocab_size", "shape_vocab_size"),
)

_MOST = {
    **dict.fromkeys(_WIDTHS, 64),
    **dict.fromkeys(_INNER_WIDTHS, 96),
    **dict.fromkeys(_HEADS, 4),
    **dict.fromkeys(_KEY_HEADS, 2),
    **dict.fromkeys(_EXPERTS, 16),
    **dict.fromkeys(_EXPERTS_OF_A_TOKEN, 2),
    **dict.fromkeys(_VOCABULARIES, VOCABULARY),
    "rotary_dim": 8,
}
"""Largest value of a config's key in a twin. Other keys keep their values, such as a head's size (on which rotary
positions depend), ranks, caps and factors."""

_SEEN = ("window", "window_size", "attention_chunk_size")
"""Endings of keys that limit how many tokens a token attends to."""

_MOST_SEEN = 5
"""Largest attention window of a twin: less than the length of the rows by which models are compared."""

_MOST_KINDS = 6
"""Most kinds of layers in a twin, which has one layer of each."""


def small_config(config: PretrainedConfig, **others: Any) -> PretrainedConfig:
    """Return ``config`` with one decoder layer of each kind, at least two layers, and small sizes; ``others`` replace
    its values."""
    values = {**_small(config.to_dict()), **others, "dtype": "float32"}
    for key in ("model_type", "transformers_version", "architectures", "auto_map", "_name_or_path"):
        values.pop(key, None)
    return type(config)(**values)


def limits_what_is_seen(config: PretrainedConfig) -> bool:
    """Whether the config has an attention window longer than a twin's."""
    values = config.get_text_config(decoder=True).to_dict().items()
    return any(isinstance(value, int) and value > _MOST_SEEN for key, value in values if key.endswith(_SEEN))


def small_twin(config: PretrainedConfig, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Build the twin of the model of ``config``, in float32 on the CPU and in evaluation mode. The caller's random
    numbers stay as they are.

    Raises:
        Exception: of any type, from the model's code, where its sizes do not fit each other.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            small_config(config), trust_remote_code=trust_remote_code
        )
        spread_weights(model)
    return model.eval()


@torch.no_grad()
def spread_weights(model: nn.Module) -> None:
    """Move random weights to where differences show: no bias is 0, no norm is 1, and logits reach what would cap
    them."""
    for weight in model.parameters():
        if not weight.is_floating_point():
            continue
        if weight.ndim < 2:
            weight.add_(0.1 * torch.randn_like(weight))
        else:
            weight.add_(4 * weight)
    output = model.get_output_embeddings()  # type: ignore[operator]
    if isinstance(getattr(output, "weight", None), nn.Parameter):
        output.weight.mul_(20)


def _small(values: Mapping[str, Any]) -> dict[str, Any]:
    """Reduce the values of a config, or of a config inside it."""
    count = next((values[key] for key in _LAYERS if isinstance(values.get(key), int)), 0)
    kept = _kept_layers(values, count)
    heads = values.get("num_attention_heads")
    size = values.get("head_dim")
    most = {**_MOST, **dict.fromkeys(_LAYERS, len(kept))}
    if heads in [values.get(key) for key in _KEY_HEADS]:  # none of them shares keys
        most |= dict.fromkeys(_KEY_HEADS, _MOST["num_attention_heads"])
    if isinstance(heads, int) and isinstance(size, int) and values.get("hidden_size") == heads * size:
        most["hidden_size"] = min(heads, _MOST["num_attention_heads"]) * size

    def at_most(key: str, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int):
            return value
        return min(value, most.get(key, _MOST_SEEN if key.endswith(_SEEN) else value))

    small: dict[str, Any] = {}
    for key, value in values.items():
        if key == "num_kv_shared_layers" and value:
            small[key] = len(kept) // 2
        elif key.endswith(("token_id", "token_index")):
            small[key] = _small_token(value)
        elif _is_per_layer(value, count):
            small[key] = [at_most(key, value[layer]) for layer in kept]
        elif key == "per_layer_config" and isinstance(value, Mapping):
            configs = {int(layer): config for layer, config in value.items()}
            small[key] = {n: _small(configs[layer]) for n, layer in enumerate(kept) if layer in configs}
        elif isinstance(value, Mapping) and key.endswith("config"):
            small[key] = _small(value)
        else:
            small[key] = at_most(key, value)
    return small


def _small_token(token: Any) -> Any:
    """Return a special token, or each of several, replaced by one of the twin's last tokens if the twin does not have
    it."""
    if isinstance(token, list | tuple):
        return [_small_token(one) for one in token]
    if not isinstance(token, int) or token < VOCABULARY:
        return token
    return VOCABULARY - 1 - token % (VOCABULARY // 10)


def _is_per_layer(value: Any, count: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == count > 2


def _kept_layers(values: Mapping[str, Any], count: int) -> list[int]:
    """Return the layers that a twin keeps: the first of each kind, and also the last if all are alike.

    Layers are of one kind if they have the same values in the config's lists of a value per layer.
    """
    columns = [value for value in values.values() if _is_per_layer(value, count)]
    kinds: dict[str, int] = {}
    for layer in range(count):
        kinds.setdefault(repr([column[layer] for column in columns]), layer)
    kept = list(kinds.values())[:_MOST_KINDS]
    if values.get("num_kv_shared_layers"):  # the second half takes the keys of the first
        return kept * 2
    if len(kept) < 2 and count > 1:
        kept.append(count - 1)
    return kept or [0]
