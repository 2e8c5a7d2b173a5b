"""The base model and its tokenizer, loaded; and the two things that training and scoring ask of a model."""

import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from moslora.data.reach import hub_cache
from moslora.disk import disk_fault
from moslora.errors import MosloraError, UsageError
from moslora.locate import locate

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

LOGIT_CHANGES = ("final_logit_softcapping", "logits_scaling", "logit_scale")
"""Config keys of what some models do behind their output layer."""


def load_tokenizer(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of ``name``: a hub id, a local folder, or :data:`BUILTIN`."""
    source = locate(name, revision=revision)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise _cannot_load(name, "tokenizer", error) from None
    return tokenizer


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """An id to fill batches with. Padding is masked and its labels ignored by position, so any valid id serves."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def load_base(
    *,
    name: str,
    dtype: str,
    attention: str = "sdpa",
    revision: str | None = None,
    gradient_checkpointing: bool = False,
    trust_remote_code: bool = False,
    device: torch.device | str = "cpu",
) -> PreTrainedModel:
    """The causal language model ``name`` in ``dtype`` on ``device``, in evaluation mode.

    The dtype is always passed on: transformers 5 would otherwise take the checkpoint's.

    Raises:
        MosloraError: absent, gated, or no network.
        UsageError: the dtype does not work on the device, or the logits are not the output layer's.
    """
    device = torch.device(device)
    # Emulated bfloat16 works and is slower than anything else; it must not count.
    if dtype == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UsageError("model.dtype = bfloat16: this GPU has no bfloat16; use model.dtype=float16")
    if not sys.stderr.isatty():
        disable_progress_bar()
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            locate(name, revision=revision),
            dtype=DTYPES[dtype],
            attn_implementation=attention,
            revision=revision,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            device_map={"": device} if device.type == "cuda" else None,  # not through the host's memory
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise _cannot_load(name, "model", error) from None
    _refuse_unusual_output(model, name)
    if gradient_checkpointing:
        # Non-reentrant: the reentrant form sees only frozen inputs and would drop every adapter gradient.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.to(device).eval()  # type: ignore[arg-type]


def _refuse_unusual_output(model: PreTrainedModel, name: str) -> None:
    """Loss and scores here are hidden · weightᵀ; a model that does more behind it would be wrong in silence."""
    changes = [key for key in LOGIT_CHANGES if getattr(model.config, key, None) not in (None, 1.0)]
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        changes.append("a bias")
    if changes:
        raise UsageError(f"model.name = {name}: its output layer has {changes[0]}, which moslora does not support")


def _cannot_load(name: str, what: str, error: Exception) -> MosloraError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    place = Path(name) if Path(name).is_dir() else hub_cache()
    message = f"model.name = {name}: its {what} cannot be loaded: {reason}; mend it, or name another"
    return disk_fault(error, place) or MosloraError(message)


def final_hidden(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The decoder's last hidden states, after the final norm and before the output layer.

    Args:
        model: a causal language model.
        input_ids: shape ``(batch, length)``, padded on the right.
        attention_mask: shape ``(batch, length)``, 1 where there is a token; ``None`` if nothing is padded.

    Returns:
        Shape ``(batch, length, hidden)``, in the model's dtype.
    """
    decoder = model.get_decoder()
    hidden: Tensor = decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
    return hidden


def output_weight(model: PreTrainedModel) -> Tensor:
    """The output layer's weight, shape ``(vocabulary, hidden)``."""
    weight: Tensor = model.get_output_embeddings().weight
    return weight
