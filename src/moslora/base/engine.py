"""The base model as training and scoring compute it: with our modules, over concatenated rows without padding."""

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from moslora.kernels.attention import Remembering, as_rows, use_rows
from moslora.kernels.exchange import exchange
from moslora.kernels.linear import own_linear
from moslora.kernels.mlp import own_mlp
from moslora.kernels.norm import own_norm
from moslora.kernels.plain import disabled_kernels
from moslora.kernels.rotary import own_attention
from moslora.kernels.rows import Rows


def use_own_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Exchanges norms, MLPs, attention and linear layers for ours, as :func:`exchange`; the weights and their names
    stay."""
    ours = {"norm": own_norm, "mlp": own_mlp, "rope": own_attention, "linear": own_linear}
    return exchange(model, *(replacement for piece, replacement in ours.items() if piece not in disabled_kernels()))


def final_hidden(model: PreTrainedModel, input_ids: Tensor, rows: Rows | Remembering) -> Tensor:
    """The hidden states after the final norm and before the output layer, shape ``(T, hidden)`` in the model's dtype.

    ``input_ids`` ``(1, T)`` are the tokens of ``rows``.
    """
    use_rows(model)
    packed: Tensor = model.get_decoder()(input_ids=input_ids, use_cache=False, **as_rows(rows)).last_hidden_state
    return packed[0]


def output_weight(model: PreTrainedModel) -> Tensor:
    """The output layer's weight, shape ``(vocabulary, hidden)``."""
    weight: Tensor = model.get_output_embeddings().weight
    return weight


def text_part(model: PreTrainedModel) -> nn.Module | None:
    """The decoder layers of a model that has other parts as well, such as an image encoder; ``None`` if it has none."""
    if not model.config.sub_configs:
        return None
    decoder: nn.Module = model.get_decoder()
    return getattr(decoder, "layers", decoder)


def context_length(config: PretrainedConfig) -> int | None:
    """Tokens of a model's longest input; ``None`` if its config does not say."""
    length = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    lengths = [length if isinstance(length, int) and length > 0 else None, independent_length(config)]
    return min((length for length in lengths if length is not None), default=None)


def independent_length(config: PretrainedConfig) -> int | None:
    """Number of tokens up to which a row's positions do not depend on the longest row of its pass; ``None`` if they
    never do.

    Beyond their original context, longrope and dynamic RoPE take other frequencies for all rows of a pass.
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
