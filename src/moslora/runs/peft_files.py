"""The files of an adapter of another program. Importing this does not load torch."""

import re
from collections.abc import Iterable
from pathlib import Path

from moslora.errors import UsageError

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "pytorch_model.bin")
"""The first that exists is read; the last is a checkpoint of transformers' Trainer."""


def adapter_files(folder: Path) -> tuple[Path, Path]:
    """Settings and weights of an adapter; a Trainer's checkpoint has its settings in the folder above."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder{hub_hint(str(folder))}")
    weights = _first_file(folder / name for name in WEIGHTS)
    config = _first_file((folder / CONFIG, folder.resolve().parent / CONFIG))
    if weights is None or config is None:
        needs = f"{CONFIG}, here or in the folder above, and here one of {', '.join(WEIGHTS)}"
        raise UsageError(f"{folder}: not an adapter in PEFT's format, which needs {needs}")
    return config, weights


def hub_hint(place: str) -> str:
    """The fix for a place that is not here and may be an id on the hub; empty for any other."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", place):
        return f"; if it is on the hub, download it first: hf download {place} --local-dir FOLDER"
    return ""


def has_adapter_files(folder: Path) -> bool:
    """Whether ``folder`` has an adapter in PEFT's format, or a part of one, rather than one of ours."""
    return _first_file(folder / name for name in (CONFIG, *WEIGHTS)) is not None


def _first_file(paths: Iterable[Path]) -> Path | None:
    """The first of these that is there."""
    for path in paths:
        if path.is_file():
            return path
    return None
