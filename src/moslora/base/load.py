"""Loads the base model and its tokenizer, and reads from a model what training and scoring need."""

import itertools
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils.logging import set_tqdm_hook
from transformers.utils.peft_utils import find_adapter_config_file

from moslora.adapters import describe_batch, named_adapters, task_names
from moslora.base.check import exchange_modules, refuse_by_config
from moslora.base.quantized import fix_layers, quantization_config
from moslora.base.resolve import ADAPTER, locate
from moslora.choices import DType
from moslora.console import note_once
from moslora.errors import MosloraError, UsageError, first_line, some
from moslora.files import disk_fault
from moslora.kernels.rows import send
from moslora.processes.devices import device as own_device
from moslora.processes.devices import multiplies_bfloat16
from moslora.ranks import is_main_process
from moslora.recipe import ModelSection

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_BARS = itertools.count()


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
    """Turns any error of the libraries while ``what`` of model ``name`` is loaded into one line.

    A GPU out of memory is left to :func:`fitting`.
    """
    # transformers prints a table of missing and mismatched tensors, which are refused in one line here. An error while
    # it quantises is in that table alone.
    table: list[str] = []
    logger = logging.getLogger("transformers.modeling_utils")

    def keep(record: logging.LogRecord) -> bool:
        table.extend([record.getMessage()] * ("LOAD REPORT" in record.getMessage()))
        return not table

    logger.addFilter(keep)
    # The bar of the first model only, and only on a terminal (``None``): some commands load one several times.
    silent = not is_main_process()
    before = set_tqdm_hook(lambda bar, args, options: bar(*args, **options, disable=silent or next(_BARS) > 0 or None))
    try:
        yield
    except (MosloraError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if "OutOfMemoryError" in "".join(table):
            raise torch.OutOfMemoryError from None
        if isinstance(error, ValueError) and "trust_remote_code" in str(error):
            raise UsageError(
                f"model.name = {name}: its {what} needs Python code from the model's folder; if you trust its authors,"
                " add --trust-remote-code (for train: model.trust_remote_code=true; data: --model names another one)"
            ) from None
        reason = first_line(error).rstrip(".")
        if found := re.search(r"^(?:\w+\.)*\w+(?:Error|Exception): .+", "".join(table), re.MULTILINE):
            reason = found[0]
        elif not isinstance(error, (OSError, ValueError, SafetensorError)):  # whose text alone says little
            reason = f"{type(error).__name__}: {reason}"
        place = name if Path(name).is_dir() else constants.HF_HUB_CACHE
        raise disk_fault(error, place) or MosloraError(
            f"model.name = {name}: its {what} cannot be loaded: {reason}; fix it, or choose another model"
        ) from None
    finally:
        set_tqdm_hook(before)
        logger.removeFilter(keep)


@contextmanager
def or_out_of_memory(line: str) -> Iterator[None]:
    """Turns running out of GPU memory into an error with this ``line``."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise MosloraError(line) from None


def fitting(section: ModelSection, *, another: str = "") -> AbstractContextManager[None]:
    """For loading the model of ``section``; ``another`` way out is named beside the usual ones."""
    bits = "" if section.quantization == "nf4" else "a recipe with model.quantization=nf4 (4 bits), "
    return or_out_of_memory(
        f"{section.name} in {section.precision} does not fit into the GPU's memory; use {bits}{another}a smaller"
        " model, or the CPU: CUDA_VISIBLE_DEVICES=''"
    )


def load_base(
    section: ModelSection, *, device: torch.device | str = "cpu", computed_here: bool = True
) -> PreTrainedModel:
    """The causal language model that ``section`` describes on ``device``, frozen and in evaluation mode.

    The output layer and the embeddings, tied or not, are never quantised. ``computed_here`` is false where the model
    will be shared out over other devices before anything is computed.

    Raises:
        UsageError: its logits are not what training and scoring compute.
    """
    name, dtype, device = section.name, section.dtype, torch.device(device)
    quantized, on_cpu = section.quantization is not None, device.type == "cpu"
    _judge_dtype(dtype, device if computed_here else own_device())
    bits = quantization_config(section, on_cpu=on_cpu) if quantized else None
    source = locate(name, revision=section.revision)
    code = {"revision": section.revision, "trust_remote_code": section.trust_remote_code}
    with loading(name, "model"):
        config = AutoConfig.from_pretrained(source, **code)
        if getattr(config, "quantization_config", None) is not None:
            raise UsageError(
                f"model.name = {name}: its weights are already quantised; use the original, and set model.quantization"
            )
        if find_adapter_config_file(source, revision=section.revision) is not None:
            raise UsageError(f"model.name = {name}: has an adapter beside its weights ({ADAPTER}); choose one without")
        refuse_by_config(config, name)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=DTYPES[dtype],  # transformers 5 otherwise takes the checkpoint's
            attn_implementation="sdpa",
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that all are named below
            quantization_config=bits,
            # Straight to the GPU, not through the host's memory. bitsandbytes would take the first, for the CPU too.
            device_map={"": device} if quantized or not on_cpu else None,
            **code,
        )
    model: PreTrainedModel
    model, info = loaded
    _refuse_unfit(name, info)
    if quantized:
        fix_layers(model, name, on_cpu=on_cpu)
    if section.gradient_checkpointing:
        recompute_layers(model)
    if not quantized:
        model.to(device)  # type: ignore[arg-type]
    model.requires_grad_(False).eval()
    exchange_modules(model, section, computed_here=computed_here)
    return model


def _judge_dtype(dtype: DType, computing: torch.device) -> None:
    """Refuses a dtype that the device which computes does not have, and notes one that is slow there."""
    if dtype == "float32":
        return
    multiplied = dtype == "bfloat16" and multiplies_bfloat16(computing)
    if computing.type == "cpu" and not multiplied:
        note_once(f"model.dtype = {dtype}: slow on this processor, which does not multiply it; float32 is faster")
    elif dtype == "bfloat16" and not multiplied:
        raise UsageError("model.dtype = bfloat16: this GPU has no bfloat16; use model.dtype=float16")


def recompute_layers(model: PreTrainedModel) -> None:
    """Turns gradient checkpointing on, not in the reentrant form, which sees frozen inputs and drops our gradients."""
    old = model.gradient_checkpointing_enable  # transformers 5.24 warns of this name, which is 5.17's only one
    getattr(model, "activation_checkpointing_enable", old)({"use_reentrant": False})


def _refuse_unfit(name: str, info: Mapping[str, Any]) -> None:
    """Refuses a model some of whose weights are random.

    transformers fills tensors that the checkpoint lacks, or has in another shape than the model, with random numbers.
    """
    faults = [f"{key} is missing" for key in sorted(info["missing_keys"])]
    for key, found, expected in sorted(info["mismatched_keys"]):
        faults.append(f"{key} has shape {tuple(found)}, the model {tuple(expected)}")
    if faults:
        raise MosloraError(
            f"model.name = {name}: its weights do not fit its config.json: {some(faults, separator='; ')};"
            " download the model again, or choose another"
        )


def name_task(model: PreTrainedModel, task: str | None) -> None:
    """Sets the task of the next forward passes, for mixers that route by it; ``None`` for the mean of all gates."""
    names = task_names(model)
    tasks: Tensor | list[int] = [names.index(task) if task in names else len(names)]
    if task is None and names:  # not that of the rows without a task, which hardly any training has
        tasks = torch.tensor([[1 / len(names)] * len(names) + [0.0]])
    place = next((layer.lora_a.device for _, layer in named_adapters(model)), model.device)
    describe_batch(model, tasks=send(tasks, place))
