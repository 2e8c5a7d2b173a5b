"""A model is checked when it is loaded: what the engine computes must be the model's own logits.

    h Wᵀ = logits,   h the decoder's last hidden states over concatenated rows, W the output layer's weight

The config is checked first, for what some models are known to do to their logits. Then numbers are compared, for what
nobody thought of: two rows of unequal length with a common beginning, through transformers' modules before they are
exchanged, and through the engine afterwards. Where computing the model itself costs much, or rounding may be the
difference, its small twin in float32 decides.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel

from moslora.base.engine import final_hidden, output_weight, use_own_modules
from moslora.base.failures import UnsupportedModel
from moslora.base.quantized import quantized_layers
from moslora.base.twin import small_twin
from moslora.console import note_once
from moslora.errors import UsageError, first_line
from moslora.kernels.attention import exchangeable
from moslora.kernels.linear import IN_FLOAT32, kernel, pack_nothing, packed_layers, product
from moslora.kernels.rows import concatenate

CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap", "logit_softcapping", "logit_softcap")
"""Keys of a config that cap the logits, unless they are null."""

FACTORS = (
    *("logits_scaling", "logit_scale", "logits_mup_width_multiplier", "lm_head_multiplier"),
    *("output_multiplier", "output_multiplier_scale", "mup_output_alpha"),
)
"""Keys of a config by which the logits are multiplied or divided, unless they are 1 or null."""

TOLERANCE = 1e-5
"""Largest ‖z' − z‖ / ‖z‖ of all logits in float32, where z is computed by transformers and z' by the engine."""

TOLERANCE_IN_16_BITS = 2e-2
"""The same in bfloat16 and float16."""

FAR = 10
"""An error of so many times the tolerance is not rounding."""

SHARED = 4
"""Number of tokens that both rows begin with."""

ENDS = (3, 6)
"""Number of tokens that follow in each of the two rows."""


def refuse_by_config(config: PretrainedConfig) -> None:
    """Refuses the model of ``config`` if the config says that the engine would be wrong; no weight is read.

    Raises:
        UnsupportedModel: with the key, or the class that mixes tokens in a way of its own.
    """
    decoder = config.get_text_config(decoder=True)
    for part in (config, decoder):
        for key in (*CAPS, *FACTORS):
            value = getattr(part, key, None)
            if value is not None and not (key in FACTORS and value == 1):
                raise UnsupportedModel(
                    f"its config.json has {key} = {value:g}, which changes its logits in a way that moslora does not"
                    " compute"
                )
    known = getattr(decoder, "unpadded_vocab_size", None)
    computed = getattr(decoder, "vocab_size", None)
    if known and computed and known < computed:
        raise UnsupportedModel(
            f"its config.json has unpadded_vocab_size = {known}, below vocab_size = {computed}; moslora would give"
            " probability to the padding tokens"
        )
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if isinstance(kind, type) and not exchangeable(kind, config):
        raise UnsupportedModel(
            f"{kind.__name__} has a layer of its own that mixes tokens, which moslora cannot replace"
        )


def computes_quickly(model: PreTrainedModel) -> bool:
    """Whether a few tokens through transformers' own modules take no noticeable time, and round as the engine does.

    bitsandbytes unpacks every weight for each pass, and in 8 bits rounds what it multiplies. A CPU that cannot multiply
    16-bit numbers takes minutes for a large model.
    """
    weight = output_weight(model)
    return not quantized_layers(model) and kernel(weight.device, weight.dtype) != IN_FLOAT32


@torch.no_grad()
def plain_logits(model: PreTrainedModel) -> Tensor:
    """The logits of the two rows, one after the other, as ``model`` computes them: ``(tokens, vocabulary)``."""
    short, long = _two_rows(model.config)
    padding = len(long) - len(short)  # behind the short row, where no token looks at it
    ids = torch.tensor([short + long[-1:] * padding, long], device=model.device)
    mask = torch.tensor([[1] * len(short) + [0] * padding, [1] * len(long)], device=model.device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return torch.cat([logits[0, : len(short)], logits[1]])


@torch.no_grad()
def engine_logits(model: PreTrainedModel) -> Tensor:
    """The logits of the two rows as training and scoring compute them; ``model`` has our modules."""
    weight = output_weight(model)
    before = model.config._attn_implementation
    tokens, rows, paths = concatenate([_two_rows(model.config)], model.device)
    pack_nothing(model)  # one pass is not worth a second copy of all weights
    hidden = final_hidden(model, tokens, rows)
    for layer in packed_layers(model):
        layer.packs = True
    if before is not None:
        model.set_attn_implementation(before)  # as stock transformers would have it
    return product(torch.cat([hidden[path] for path in paths]).to(weight.dtype), weight)


def exchange_modules(model: PreTrainedModel, *, trust_remote_code: bool = False, computed_here: bool = True) -> None:
    """Exchanges the modules of ``model`` for ours (:func:`use_own_modules`), and compares its logits before and after.

    Without ``computed_here``, or where its own modules are slow, its twin is compared instead.

    Raises:
        UnsupportedModel: the logits differ; with the architecture and the error.
    """
    refuse_bias(model)
    # cuDNN's attention plans for each new shape, for up to half a second, and rows have many lengths.
    torch.backends.cuda.enable_cudnn_sdp(False)
    expected = None
    if computed_here and computes_quickly(model):
        with _refusing(f"{type(model).__name__} cannot compute text alone"):
            expected = plain_logits(model)
    use_own_modules(model)
    model.eval()  # ours are made in training mode
    if expected is not None:
        error = _error(model, expected)
        tolerance = TOLERANCE_IN_16_BITS if expected.dtype.itemsize <= 2 else TOLERANCE
        if error <= tolerance:
            return
        if _may_round_factors(expected.device):
            tolerance = TOLERANCE_IN_16_BITS
        if error > FAR * tolerance:
            raise _other_logits(model, error)
    refuse_by_twin(model.config, trust_remote_code=trust_remote_code)


_equal: set[str] = set()
"""Configs whose twins were compared, and agreed."""


def refuse_by_twin(config: PretrainedConfig, *, trust_remote_code: bool = False) -> None:
    """Compares the logits of the small twin of the model of ``config``, once per process.

    Raises:
        UnsupportedModel: they differ; with the architecture and the error.
    """
    key = f"{type(config)} {config.to_json_string()}"
    if key in _equal:
        return
    try:
        twin = small_twin(config, trust_remote_code=trust_remote_code)
        expected = plain_logits(twin)
    except Exception as misfit:  # of hundreds of architectures, whose sizes fit each other in ways of their own
        name = config.name_or_path or type(config).__name__
        note_once(f"model.name = {name}: its logits could not be compared with transformers' ({first_line(misfit)})")
        return
    refuse_bias(twin)
    use_own_modules(twin.requires_grad_(False))
    twin.eval()
    error = _error(twin, expected)
    if not error <= TOLERANCE:
        raise _other_logits(twin, error)
    _equal.add(key)


def refuse_bias(model: PreTrainedModel) -> None:
    """Refuses a model whose output layer has a bias, which loss and scores leave out."""
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        raise UnsupportedModel(f"the output layer of {type(model).__name__} has a bias, which moslora does not support")


def _error(model: PreTrainedModel, expected: Tensor) -> float:
    """‖z' − z‖ / ‖z‖; infinite where the engine computes other tokens."""
    with _refusing(f"{type(model).__name__} cannot compute packed rows, several end to end"):
        found = engine_logits(model)
    if found.shape != expected.shape:
        return torch.inf
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@contextmanager
def _refusing(fault: str) -> Iterator[None]:
    """Turns any error of a model's code into a refusal of the model for this ``fault``.

    A GPU out of memory is left to `moslora.base.failures.fitting`.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except UsageError as unfit:
        raise UnsupportedModel(str(unfit).removeprefix("model: ")) from None
    except Exception as error:
        raise UnsupportedModel(f"{fault} ({type(error).__name__}: {first_line(error)})") from None


def _may_round_factors(device: torch.device) -> bool:
    """Whether float32 factors may be rounded to TF32, with a mantissa of 10 bits, when they are multiplied.

    NVIDIA's images switch that on by TORCH_ALLOW_TF32_CUBLAS_OVERRIDE, which torch tells. cuBLAS's own
    NVIDIA_TF32_OVERRIDE is told nowhere, so any GPU may.
    """
    return device.type != "cpu" or torch.get_float32_matmul_precision() != "highest"


def _other_logits(model: PreTrainedModel, error: float) -> UnsupportedModel:
    return UnsupportedModel(
        f"{type(model).__name__} computes its logits in a way that moslora does not support (moslora's are off by"
        f" {error:.2g}, relative)"
    )


def _two_rows(config: PretrainedConfig) -> tuple[list[int], list[int]]:
    """The short and the long row: tokens from all over the vocabulary, none of them special."""
    decoder = config.get_text_config(decoder=True)
    special: set[int] = set()
    for part in (config, decoder):
        ids = {key: value for key, value in part.to_dict().items() if key.endswith(("_token_id", "_token_index"))}
        special |= {value for value in ids.values() if isinstance(value, int)}
    count = SHARED + sum(ENDS)
    step = max(1, decoder.vocab_size // (2 * count))
    ordinary = [token for token in range(step // 2, decoder.vocab_size, step) if token not in special][:count]
    begin = ordinary[:SHARED]
    short_end = ordinary[SHARED : SHARED + ENDS[0]]
    long_end = ordinary[SHARED + ENDS[0] :]
    return begin + short_end, begin + long_end
