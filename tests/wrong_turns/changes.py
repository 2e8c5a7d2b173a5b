"""Damage to files, and edits that the hashes of an adapter folder do not notice."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from moslora.files import sha256
from moslora.runs.manifest import MANIFEST, read_manifest, with_own_hash


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_tensors(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def sign(adapter: Path, **values: Any) -> None:
    """Changes values of the manifest, and has its hashes fit the files."""
    manifest = read_manifest(adapter) | values
    manifest["sha256"] = {name: sha256(adapter / name) for name in manifest["sha256"]}
    (adapter / MANIFEST).write_text(json.dumps(with_own_hash(manifest)))
