"""Errors of the libraries while a model is loaded, in one line each, and running out of GPU memory."""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from huggingface_hub import constants
from transformers.utils.logging import disable_progress_bar

from moslora.errors import MosloraError, UsageError, first_line
from moslora.files import disk_fault
from moslora.process_rank import is_main_process
from moslora.processes.devices import is_out_of_memory
from moslora.recipe import ModelSection
from moslora.versions import import_fault


class UnsupportedModel(UsageError):
    """Model that cannot be trained or scored here. The message says why, without the model's name."""


@contextmanager
def loading(name: str, what: str) -> Iterator[None]:
    """While ``what`` of model ``name`` is loaded, replace any error of the libraries by one with a message of one line.

    Running out of GPU memory is left to :func:`fitting`.
    """
    if not (is_main_process() and sys.stderr.isatty()):
        disable_progress_bar()
    with _load_report() as report:
        try:
            yield
        except MosloraError:
            raise
        except Exception as error:
            raise _explained(error, "".join(report), name=name, what=what) from None


@contextmanager
def _load_report() -> Iterator[list[str]]:
    """Collect transformers' table of missing and mismatched tensors instead of printing it.

    `moslora.base.load` refuses such tensors in one line. An error while transformers quantises appears in the table
    alone.
    """
    report: list[str] = []
    logger = logging.getLogger("transformers.modeling_utils")

    def keep(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if "LOAD REPORT" in message:
            report.append(message)
        return not report

    logger.addFilter(keep)
    try:
        yield report
    finally:
        logger.removeFilter(keep)


def _explained(error: Exception, report: str, *, name: str, what: str) -> Exception:
    """Return the error to raise instead of a library's ``error``; ``report`` is transformers' table."""
    if "OutOfMemoryError" in report or is_out_of_memory(error):
        return torch.OutOfMemoryError()
    if isinstance(error, ValueError) and "trust_remote_code" in str(error):
        return UsageError(
            f"model.name = {name}: its {what} needs Python code from the model's folder; if you trust its authors, add"
            " --trust-remote-code (for train: model.trust_remote_code=true; data: --model names another one)"
        )
    folder = name if Path(name).is_dir() else constants.HF_HUB_CACHE
    reason = f"{type(error).__name__}: {first_line(error).rstrip('.')}"
    quoted = re.search(r"^(?:\w+\.)*\w+(?:Error|Exception): .+", report, re.MULTILINE)
    if quoted:
        reason = quoted[0]
    return (
        disk_fault(error, folder)
        or import_fault(error)
        or MosloraError(f"model.name = {name}: its {what} cannot be loaded: {reason}; fix it, or choose another model")
    )


@contextmanager
def or_out_of_memory(line: str) -> Iterator[None]:
    """Turn running out of GPU memory inside the block into an error whose message is ``line``."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise MosloraError(line) from None


def fitting(section: ModelSection, *, sharding: str = "") -> AbstractContextManager[None]:
    """Turn running out of GPU memory while the model of ``section`` is loaded into an error that names ways out,
    including ``sharding``.

    ``sharding`` is the setting that shards the base, if the base can be sharded.
    """
    in_4_bits = "" if section.quantization == "nf4" else "a recipe with model.quantization=nf4 (4 bits), "
    if not section.can_be_sharded:
        sharding = ""
    ways_out = f"{in_4_bits}{sharding}a smaller model, or the CPU: CUDA_VISIBLE_DEVICES=''"
    return or_out_of_memory(f"{section.name} in {section.precision} does not fit into the GPU's memory; use {ways_out}")
