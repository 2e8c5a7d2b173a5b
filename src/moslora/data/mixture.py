"""commonsense_170k, LLM-Adapters' training file of all eight sets: their own file is known by its git blob id."""

import hashlib
from pathlib import Path

MIXTURE = "commonsense_170k"
"""The file's name, and that of the source on the hub."""

BLOB_ID = "529e426b33d4cdb1d0c4a275a1a7245ad081fd91"
"""Of ``ft-training_set/commonsense_170k.json`` in github.com/AGI-Edgerunners/LLM-Adapters (8166572, March 2024)."""

NESTED_SIZES = (160, 640, 2_558, 10_234, 40_398)
"""WinoGrande's xs, s, m, l, xl: each is a prefix of the next, and LLM-Adapters trains on one after the other."""


def blob_id(content: bytes) -> str:
    """Git's name of a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def remark(source: str) -> str | None:
    """Whether a source is LLM-Adapters' file, as far as is known; ``None`` for one that does not go by its name."""
    path = Path(source).expanduser()
    if source != MIXTURE and path.is_file():
        if blob_id(path.read_bytes()) == BLOB_ID:
            return f"{source}: LLM-Adapters' own {MIXTURE}.json (git blob {BLOB_ID[:12]})"
        if path.stem == MIXTURE:
            return f"{source}: not LLM-Adapters' own file, whose git blob id is {BLOB_ID[:12]}…; its rows may be others"
    return f"{source}: the hub's copy of LLM-Adapters' file; its rows are counted" if source == MIXTURE else None
