"""The files of an adapter in PEFT's format. Importing this module does not load torch."""

import re
from collections.abc import Iterable
from pathlib import Path

from moslora.errors import UsageError

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "pytorch_model.bin")
"""Files of weights, of which the first that exists is read. The last is a checkpoint of transformers' Trainer."""


def adapter_files(folder: Path) -> tuple[Path, Path]:
    """Paths of settings and weights of an adapter. A Trainer's checkpoint has its settings in the folder above."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder{hub_hint(str(folder))}")
    weights = _first_file(folder / name for name in WEIGHTS)
    config = _first_file((folder / CONFIG, folder.resolve().parent / CONFIG))
    if weights is None or config is None:
        needs = f"{CONFIG}, in it or in the folder above, and one of {', '.join(WEIGHTS)}"
        raise UsageError(f"{folder}: not an adapter in PEFT's format, which needs {needs}")
    return config, weights


def hub_hint(place: str) -> str:
    """Fix for a missing folder whose name may be an id on the hub; empty for any other."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", place):
        return f"; if it is on the hub, download it first: hf download {place} --local-dir FOLDER"
    return ""


def has_adapter_files(folder: Path) -> bool:
    """Whether ``folder`` has settings or weights in PEFT's format; an adapter folder of moslora has neither."""
    return _first_file(folder / name for name in (CONFIG, *WEIGHTS)) is not None


def _first_file(paths: Iterable[Path]) -> Path | None:
    """First of ``paths`` that is a file."""
    return next(filter(Path.is_file, paths), None)
