"""Names that vLLM has for the modules of an adapter, from a table that vLLM made of small models
(`benchmarks/checks/vllm_modules.py`)."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from transformers import PretrainedConfig

from moslora.errors import MosloraError

TABLE = Path(__file__).with_name("vllm_modules.json")
"""``version`` of vLLM; ``architectures``: name -> patterns of the modules that it applies, with ``*`` for a number. The
list is empty where vLLM has no LoRA."""


def version() -> str:
    """Version of vLLM that made the table."""
    return str(json.loads(TABLE.read_bytes())["version"])


def patterns_of(config: PretrainedConfig) -> list[str]:
    """Patterns of the modules that vLLM applies over a base with this config.

    Raises:
        MosloraError: the table does not have its architecture.
    """
    architecture = (config.architectures or ["no architecture"])[0]
    patterns: list[str] | None = json.loads(TABLE.read_bytes())["architectures"].get(architecture)
    if patterns is None:
        raise MosloraError(
            f"{architecture}: moslora does not know which adapters vLLM {version()} applies to it; with vLLM"
            " installed, `moslora verify --for vllm` asks vLLM itself"
        )
    return patterns


def pattern(module: str) -> str:
    """Name of a module with ``*`` for each number."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", module)


def name_for_vllm(module: str, patterns: Sequence[str]) -> str:
    """vLLM's name of a module of a decoder layer: ``module`` itself if it is among ``patterns``; otherwise with the
    prefix before ``.layers.`` that they have.

    Raises:
        MosloraError: vLLM applies no such module.
    """
    start, mark, rest = module.partition(".layers.")
    ending = pattern(f"{mark}{rest}")
    starts = {each.removesuffix(ending) for each in patterns if mark and each.endswith(ending)}
    if pattern(module) not in patterns:
        if len(starts) != 1:
            raise MosloraError(
                f"{module}: vLLM {version()} applies no adapter to this module; merge the adapter instead"
            )
        (start,) = starts
    return f"{start}{mark}{rest}"
