"""Our engine: the base model with our modules, computed over concatenated rows without padding."""

from torch import Tensor, nn
from transformers import PreTrainedModel

from moslora.kernels.attention import as_rows, use_rows
from moslora.kernels.cache import CachedPass
from moslora.kernels.exchange import exchange
from moslora.kernels.linear import own_linear
from moslora.kernels.mlp import own_mlp
from moslora.kernels.norm import own_norm
from moslora.kernels.plain import disabled_kernels
from moslora.kernels.rotary import own_attention
from moslora.kernels.rows import Rows


def use_own_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Replace norms, MLPs, attention and linear layers by ours, and return the original modules by name. Weights keep
    their names."""
    ours = {"norm": own_norm, "mlp": own_mlp, "rope": own_attention, "linear": own_linear}
    return exchange(model, *(replacement for piece, replacement in ours.items() if piece not in disabled_kernels()))


def final_hidden(model: PreTrainedModel, input_ids: Tensor, rows: Rows | CachedPass) -> Tensor:
    """Return the hidden states before the output layer, after the final norm: ``(T, hidden)`` in the model's dtype.

    ``input_ids`` ``(1, T)`` are the tokens of ``rows``.
    """
    use_rows(model)
    packed: Tensor = model.get_decoder()(input_ids=input_ids, use_cache=False, **as_rows(rows)).last_hidden_state
    return packed[0]


def output_weight(model: PreTrainedModel) -> Tensor:
    """Return the output layer's weight, shape ``(vocabulary, hidden)``."""
    weight: Tensor = model.get_output_embeddings().weight
    return weight


def text_part(model: PreTrainedModel) -> nn.Module | None:
    """Return the list of decoder layers, or else the decoder, of a model that also has other parts, such as an image
    encoder; ``None`` if the model has no other parts."""
    if not model.config.sub_configs:
        return None
    decoder: nn.Module = model.get_decoder()
    return getattr(decoder, "layers", decoder)
