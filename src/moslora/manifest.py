"""The manifest of an adapter folder: what it is, who wrote it, and the hashes of every file and of itself."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from moslora.errors import MosloraError, UsageError, first_line
from moslora.recipe import Recipe, load_recipe

FORMAT = 2
"""Written by this version. Format 1, which is read as well, had no hash of the manifest itself."""

WEIGHTS = "adapter.safetensors"
RECIPE = "recipe.yaml"
MANIFEST = "manifest.json"
OWN_HASH = "manifest_sha256"

TRUST = "model.trust_remote_code"
"""The one key of a recipe that is not taken from what was stored."""


def with_own_hash(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """``manifest`` with the hash of its content under :data:`OWN_HASH`."""
    return {**manifest, OWN_HASH: _own_hash(manifest)}


def load_written(path: Path, overrides: Sequence[str] = (), *, by: str | None) -> Recipe:
    """A recipe that moslora ``by`` wrote, and perhaps trained by before there were all of today's rules.

    It may have come from anybody, and opening it is no word of trust: whatever it says, the base's own Python code is
    run only if ``overrides`` say so.

    Raises:
        UsageError: it does not hold here; where a newer version wrote it, that is the reason.
    """
    try:
        return load_recipe(path, [f"{TRUST}=false", *overrides], written=True)
    except UsageError as fault:
        if by is None or not _newer(by):
            raise
        raise UsageError(
            f"{path}: written by moslora {by}, this is {version('moslora')}; upgrade moslora ({first_line(fault)})"
        ) from None


def _newer(by: str) -> bool:
    try:
        return Version(by) > Version(version("moslora"))
    except (TypeError, InvalidVersion):
        return False


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, with its hash and the keys that every reader counts on checked.

    Raises:
        UsageError: there is none, or one of a newer version.
        MosloraError: it was altered.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UsageError(f"{folder}: no {MANIFEST}, so this is not an adapter folder of moslora")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if (written_as := int(manifest["format"])) > FORMAT:
            raise UsageError(
                f"{folder}: written in format {written_as}, this moslora reads up to {FORMAT}; upgrade moslora"
            )
        if (written_as > 1 or OWN_HASH in manifest) and manifest.pop(OWN_HASH) != _own_hash(manifest):
            raise MosloraError(f"{path}: altered (its sha256 differs); take another checkpoint")
        known = {**manifest["base"], **manifest["sha256"], "moslora": manifest["moslora"]}
        wanted = ("name", "fingerprint", WEIGHTS, RECIPE, "moslora")
        if missing := [key for key in wanted if not isinstance(known.get(key), str)]:
            raise ValueError(f"no text under {', '.join(missing)}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MosloraError(f"{path}: not a manifest ({error!r}); take another checkpoint") from None
    return manifest


def _own_hash(manifest: Mapping[str, Any]) -> str:
    """sha256 of the manifest without this hash, written as JSON in one canonical way."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
