"""The files of an adapter of another program. Importing this does not load torch."""

import re
from pathlib import Path

from moslora.errors import UsageError

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "pytorch_model.bin")
"""The first that exists is read; the last is a checkpoint of transformers' Trainer."""


def adapter_files(folder: Path) -> tuple[Path, Path]:
    """Settings and weights of an adapter; a Trainer's checkpoint has its settings in the folder above."""
    if not folder.is_dir():
        on_the_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder))
        fix = f"; if it is on the hub, download it first: hf download {folder} --local-dir FOLDER" if on_the_hub else ""
        raise UsageError(f"{folder}: no such folder{fix}")
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise UsageError(f"{folder}: not a LoRA adapter, which has one of {', '.join(WEIGHTS)}")
    config = next((path for path in (folder / CONFIG, folder.resolve().parent / CONFIG) if path.is_file()), None)
    if config is None:
        raise UsageError(f"{folder}: no {CONFIG}, here or in the folder above; copy it here from the training run")
    return config, weights
