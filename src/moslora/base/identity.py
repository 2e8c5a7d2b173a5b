"""Identity of a base: the bytes of its weights, and the config that says how they compute.

Evaluations, checkpoints, experiments and imports share it, so that they agree on what is the same model. A model's path
and the precision in which it is loaded are not part of it.
"""

import functools
import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from moslora.base.disk_cache import cached
from moslora.base.resolve import weight_files
from moslora.errors import MosloraError, first_line
from moslora.files import sha256

HASHED_WHOLE = 2 * 10**9
"""Largest weight file, in bytes, of which every byte is hashed, which takes about two seconds once."""

STRIDE = 16 * 2**20
"""Bytes between the starts of two samples of a larger file."""

SAMPLE = 64 * 2**10
"""Bytes of a sample."""

NOT_COMPUTED = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")
"""Keys of a config that change no number here, such as who wrote it and how others load it."""

_version_of = functools.cache(metadata.version)  # which parses all that a package says of itself


@functools.cache
def fingerprint(name: str, *, revision: str | None = None) -> str:
    """Return a short hash of the model's weights and config. A model with another hash computes something else.

    Hashed are all weight files (samples of each that is larger than :data:`HASHED_WHOLE`), ``config.json`` without the
    keys of :data:`NOT_COMPUTED`, and the model's own Python code if its config names any. The hash is cached in this
    process.

    Raises:
        MosloraError: a file cannot be read.
        UsageError: there is no such model, or it has no safetensors weights.
    """
    files = weight_files(name, revision=revision)
    folder = files[0].parent
    parts = {"weights": [_file_hash(path) for path in files], "config": _config(folder / "config.json")}
    if "auto_map" in parts["config"]:
        parts["code"] = [sha256(path) for path in sorted(folder.glob("*.py"))]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _config(path: Path) -> Any:
    """Read the keys of a config that change what is computed, also in the configs within it."""
    try:
        return json.loads(
            path.read_text(encoding="utf-8"),
            object_hook=lambda config: {key: value for key, value in config.items() if key not in NOT_COMPUTED},
        )
    except (OSError, ValueError, RecursionError) as error:
        raise MosloraError(f"{path}: not a model's config ({first_line(error)}); download the model again") from None


def _file_hash(path: Path) -> str:
    """Return `weight_hash` of a file, cached on disk until the file is written to. Refuse a file that is cut short."""
    try:
        with safe_open(path, framework="pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise MosloraError(f"{path}: cannot be read ({first_line(error)}); download the model again") from None
    file = path.resolve()  # of the hub's cache: the blob, not its name in a snapshot
    status = file.stat()
    written = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    digest: str = cached("hashes", str(file), lambda: weight_hash(file), state=written)
    return digest


def weight_hash(path: Path) -> str:
    """Return the sha256 of a weight file, or of its size, header and samples if it is larger than :data:`HASHED_WHOLE`.

    The header names every tensor with its dtype, shape and place. Samples of `SAMPLE` bytes, at each multiple of
    `STRIDE` and at the end, notice a training, a merge or another precision.
    """
    size = path.stat().st_size
    if size <= HASHED_WHOLE:
        return sha256(path)
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        prefix = file.read(8)  # safetensors begins with the length of its header
        digest.update(prefix)
        digest.update(file.read(int.from_bytes(prefix, "little")))
        for start in (*range(0, size, STRIDE), size - SAMPLE):
            file.seek(start)
            digest.update(file.read(SAMPLE))
    return digest.hexdigest()


def packages(*others: str, quantized: bool) -> dict[str, str]:
    """Return the versions of the packages that compute: torch, transformers and the like, bitsandbytes for a quantised
    base, and ``others``, which compute the adapters."""
    names = ["torch", "transformers", "tokenizers", "accelerate"]
    if quantized:
        names.append("bitsandbytes")
    names += others
    return {name: _version_of(name) for name in names}
