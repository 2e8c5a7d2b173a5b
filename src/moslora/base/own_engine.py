"""Our engine: the base model with our modules, computed over concatenated rows without padding."""

from collections.abc import Callable, Collection

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from moslora.kernels.attention import as_rows, use_rows
from moslora.kernels.cache import CachedPass
from moslora.kernels.exchange import exchange
from moslora.kernels.linear import own_linear
from moslora.kernels.mlp import own_mlp
from moslora.kernels.norm import own_norm
from moslora.kernels.plain import disabled_kernels
from moslora.kernels.rotary import own_attention
from moslora.kernels.rows import Rows

MODULES = {"norm": own_norm, "mlp": own_mlp, "rope": own_attention, "linear": own_linear}
"""Piece of `moslora.kernels.plain.PIECES` -> function that returns our module for one of transformers'."""


def use_own_modules(model: PreTrainedModel, pieces: Collection[str] = MODULES) -> Callable[[], None]:
    """Replace norms, MLPs, attention and linear layers by ours, as far as ``pieces`` names them. Weights keep their
    names.

    Returns:
        Function that restores the model's own modules, and its attention (`moslora.kernels.attention.use_rows`).
    """
    configs = _configs(model)
    settings = [vars(config).copy() for config in configs]
    originals = exchange(
        model, *(ours for piece, ours in MODULES.items() if piece in pieces and piece not in disabled_kernels())
    )

    def restore() -> None:
        for path, module in reversed(originals.items()):
            model.set_submodule(path, module)
        for config, values in zip(configs, settings, strict=True):
            vars(config).clear()
            vars(config).update(values)
        model.moslora_rows = False  # type: ignore[assignment]

    return restore


def _configs(model: PreTrainedModel) -> list[PretrainedConfig]:
    """Configs of ``model`` and of its parts, each once."""
    waiting = [getattr(module, "config", None) for module in model.modules()]
    found: dict[int, PretrainedConfig] = {}
    while waiting:
        config = waiting.pop()
        if isinstance(config, PretrainedConfig) and id(config) not in found:
            found[id(config)] = config
            waiting += vars(config).values()
    return [*found.values()]


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
