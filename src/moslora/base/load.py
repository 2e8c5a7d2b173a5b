"""The base model and its tokenizer, and what training and scoring ask of a model."""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from moslora.adapters import describe_batch
from moslora.base.attention import Rows, as_rows, send, takes_rows, use_rows
from moslora.base.norm import use_fast_norms
from moslora.base.quantized import fix_cpu_layers, quantization_config
from moslora.base.resolve import locate
from moslora.download.hub import hub_cache
from moslora.errors import MosloraError, UsageError, first_line, some
from moslora.files import disk_fault
from moslora.recipe import ModelSection
from moslora.tasks import task_number

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

LOGIT_CHANGES = ("final_logit_softcapping", "logits_scaling", "logit_scale")
"""Config keys of what some models do behind their output layer."""


def load_tokenizer(section: ModelSection) -> PreTrainedTokenizerBase:
    """The tokenizer of the model that ``section`` names."""
    source = locate(section.name, revision=section.revision)
    with loading(section.name, "tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, revision=section.revision, trust_remote_code=section.trust_remote_code
        )
    return tokenizer


@contextmanager
def loading(name: str, what: str) -> Iterator[None]:
    """Turns whatever the libraries raise in the block at a damaged or unknown model, errors of any type, into one line.

    Args:
        name: of the model.
        what: is loaded, in a word.

    Raises:
        UsageError: it comes with Python code, which nobody said to trust.
        MosloraError: it cannot be loaded. What ran out of the GPU's memory is left to the caller.
    """
    # Of tensors that are missing or misshapen transformers would print a table: they are refused in one line here.
    logger, no_table = logging.getLogger("transformers.modeling_utils"), lambda r: "LOAD REPORT" not in r.getMessage()
    logger.addFilter(no_table)
    try:
        yield
    except (MosloraError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise _cannot_load(name, what, error) from None
    finally:
        logger.removeFilter(no_table)


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """An id to fill batches with. Padding is masked and its labels ignored by position, so any valid id serves."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def load_base(section: ModelSection, *, device: torch.device | str = "cpu") -> PreTrainedModel:
    """The causal language model that ``section`` describes on ``device``, in evaluation mode.

    The dtype is always passed on: transformers 5 would otherwise take the checkpoint's. Of a quantised model the output
    layer and the embeddings, tied or not, stay in it.

    Raises:
        MosloraError: absent, gated, or no network.
        UsageError: the dtype or the quantisation does not work on the device, the logits are not the output layer's,
            bitsandbytes is missing, or the checkpoint is quantised already.
    """
    name, dtype, device = section.name, section.dtype, torch.device(device)
    quantized, on_cpu = section.quantization is not None, device.type == "cpu"
    # Emulated bfloat16 works and is slower than anything else; it must not count.
    if dtype == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UsageError("model.dtype = bfloat16: this GPU has no bfloat16; use model.dtype=float16")
    if not sys.stderr.isatty():
        disable_progress_bar()
    changes: dict[str, Any] = {}
    if quantized:
        changes["quantization_config"] = quantization_config(section, on_cpu=on_cpu)
    # On a GPU not through the host's memory. bitsandbytes left to itself would take the first GPU, on the CPU too.
    if quantized or device.type == "cuda":
        changes["device_map"] = {"": device}
    source = locate(name, revision=section.revision)
    code = {"revision": section.revision, "trust_remote_code": section.trust_remote_code}
    with loading(name, "model"):
        config = AutoConfig.from_pretrained(source, **code)
        if getattr(config, "quantization_config", None) is not None:
            raise UsageError(
                f"model.name = {name}: its weights are quantised already; name the original, and set model.quantization"
            )
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=DTYPES[dtype],
            attn_implementation=section.attention,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # only in order to name them
            **code,
            **changes,
        )
    model: PreTrainedModel
    model, info = loaded
    _refuse_incomplete(name, missing=sorted(info["missing_keys"]), mismatched=sorted(info["mismatched_keys"]))
    _refuse_unusual_output(model, name)
    if section.quantization == "nf4" and on_cpu:
        fix_cpu_layers(model, name)
    if section.gradient_checkpointing:
        # Non-reentrant: the reentrant form sees only frozen inputs and would drop every adapter gradient.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if not quantized:
        model.to(device)  # type: ignore[arg-type]
    use_fast_norms(model)
    return model.eval()


def _refuse_incomplete(
    name: str, *, missing: Sequence[str], mismatched: Sequence[tuple[str, Sequence[int], Sequence[int]]]
) -> None:
    """Refuses a checkpoint that does not fill its model: transformers fills the rest with random numbers.

    Args:
        name: of the model.
        missing: names of its tensors that the checkpoint lacks (a tied output layer is the embedding, and is there).
        mismatched: name, shape in the checkpoint, shape in the model.
    """
    faults = [f"{key} is missing" for key in missing]
    faults += [f"{key} has shape {tuple(there)}, the model {tuple(wanted)}" for key, there, wanted in mismatched]
    if faults:
        raise MosloraError(
            f"model.name = {name}: its weights do not fit its config.json: {some(faults, separator='; ')};"
            " download the model again, or name another"
        )


def _refuse_unusual_output(model: PreTrainedModel, name: str) -> None:
    """Loss and scores here are hidden · weightᵀ; a model that does more behind it would be silently wrong."""
    changes = [key for key in LOGIT_CHANGES if getattr(model.config, key, None) not in (None, 1.0)]
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        changes.append("a bias")
    if changes:
        raise UsageError(f"model.name = {name}: its output layer has {changes[0]}, which moslora does not support")


def _cannot_load(name: str, what: str, error: Exception) -> MosloraError:
    place = Path(name) if Path(name).is_dir() else hub_cache()
    reason = first_line(error).rstrip(".")
    if not isinstance(error, (OSError, ValueError, SafetensorError)):  # whose text says little without the type
        reason = f"{type(error).__name__}: {reason}"
    if isinstance(error, ValueError) and "trust_remote_code" in str(error):
        return UsageError(
            f"model.name = {name}: its {what} comes with Python code; if you trust its authors, let it run with"
            " --trust-remote-code (in a recipe and for train: model.trust_remote_code=true)"
        )
    message = f"model.name = {name}: its {what} cannot be loaded: {reason}; fix it, or name another"
    return disk_fault(error, place) or MosloraError(message)


def final_hidden(model: PreTrainedModel, tokens: Sequence[int], rows: Rows) -> Tensor:
    """The decoder's last hidden states, after the final norm and before the output layer.

    Args:
        model: a causal language model.
        tokens: the T tokens of ``rows``.
        rows: which of them belong together.

    Returns:
        Shape ``(T, hidden)``, in the model's dtype.
    """
    decoder = model.get_decoder()
    if takes_rows(model):
        use_rows(model)
        packed: Tensor = decoder(
            input_ids=send([tokens], rows.device), use_cache=False, **as_rows(rows)
        ).last_hidden_state
        return packed[0]
    # An attention of its own: every path as a sequence, padded on the right.
    longest = max(map(len, rows.paths))
    input_ids = [[tokens[i] for i in path] + [0] * (longest - len(path)) for path in rows.paths]
    mask = [[1] * len(path) + [0] * (longest - len(path)) for path in rows.paths]
    hidden: Tensor = decoder(
        input_ids=send(input_ids, rows.device), attention_mask=send(mask, rows.device), use_cache=False
    ).last_hidden_state
    found = {i: number * longest + at for number, path in enumerate(rows.paths) for at, i in enumerate(path)}
    return hidden.flatten(0, 1).index_select(0, send([found[i] for i in range(len(tokens))], rows.device))


def context_length(model: PreTrainedModel) -> int | None:
    """The most tokens that the model was made for; ``None`` where its config does not say."""
    length = getattr(model.config, "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def name_task(model: PreTrainedModel, task: str) -> None:
    """Tells the mixers that route by the task which one the next forward passes are about."""
    describe_batch(model, tasks=torch.tensor([task_number(task)], device=model.device))


def output_weight(model: PreTrainedModel) -> Tensor:
    """The output layer's weight, shape ``(vocabulary, hidden)``."""
    weight: Tensor = model.get_output_embeddings().weight
    return weight
