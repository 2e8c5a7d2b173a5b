"""The files of an adapter of another program. Importing this does not load torch."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moslora.errors import UsageError

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "pytorch_model.bin")
"""The first that exists is read; the last is a checkpoint of transformers' Trainer."""


def adapter_files(folder: Path) -> tuple[Path, Path]:
    """Settings and weights of an adapter; a Trainer's checkpoint has its settings in the folder above."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder{hub_hint(str(folder))}")
    weights = _first_file(folder / name for name in WEIGHTS)
    if weights is None:
        raise UsageError(f"{folder}: not a LoRA adapter, which has one of {', '.join(WEIGHTS)}")
    config = _first_file((folder / CONFIG, folder.resolve().parent / CONFIG))
    if config is None and (folder / "config.json").is_file():
        raise UsageError(f"{folder}: a model without an adapter (no {CONFIG}); choose the folder of an adapter")
    if config is None:
        raise UsageError(f"{folder}: no {CONFIG}, here or in the folder above; copy it here from the training run")
    return config, weights


def hub_hint(place: str) -> str:
    """The fix for a place that is not here and may be an id on the hub; empty for any other."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", place):
        return f"; if it is on the hub, download it first: hf download {place} --local-dir FOLDER"
    return ""


def has_adapter_files(folder: Path) -> bool:
    """Whether ``folder`` has an adapter in PEFT's format, or a part of one, rather than one of ours."""
    return _first_file(folder / name for name in (CONFIG, *WEIGHTS)) is not None


def value_in(config: Path, key: str) -> Any:
    """A value of the settings; ``None`` if they do not have it, or cannot be read."""
    try:
        values = json.loads(config.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(values, dict):
        return None
    return values.get(key)


def _first_file(paths: Iterable[Path]) -> Path | None:
    """The first of these that is there."""
    for path in paths:
        if path.is_file():
            return path
    return None
