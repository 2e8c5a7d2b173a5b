"""The manifest of an adapter folder, with the hashes of all its files and of itself, and the stored recipe."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moslora.errors import MosloraError, UsageError, first_line
from moslora.recipe import Recipe, load_recipe
from moslora.version import __version__

FORMAT = 3
"""Number that rises when readers need what earlier folders lack. Since 3, a base's fingerprint covers all its bytes."""

WEIGHTS = "adapter.safetensors"
RECIPE = "recipe.yaml"
MANIFEST = "manifest.json"
OWN_HASH = "manifest_sha256"

TRUST = "model.trust_remote_code"
"""Key that is never read from a stored recipe, since its author may be anyone."""

NO_TRUST = f"{TRUST}=false"
"""Override that withdraws trust in remote code from a stored recipe and from the recipes that it extends."""


def with_own_hash(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``manifest`` with the sha256 of its canonical JSON under :data:`OWN_HASH`."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return {**manifest, OWN_HASH: hashlib.sha256(text.encode()).hexdigest()}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of an adapter folder, check its own hash, and leave that out."""
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        # Before the format is read, since a damaged format number must not look like a newer version.
        if manifest.pop(OWN_HASH) != with_own_hash(manifest)[OWN_HASH]:
            raise MosloraError(f"{path}: altered (its sha256 differs); use another checkpoint")
        written_as = manifest["format"]
        if written_as != FORMAT:
            raise UsageError(
                f"{folder}: written in format {written_as}, this version reads {FORMAT}; upgrade moslora, or"
                " use the version that wrote it"
            )
        _ = manifest["base"]["fingerprint"], manifest["sha256"][WEIGHTS], manifest["sha256"][RECIPE]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MosloraError(f"{path}: not a manifest ({error!r}); use another checkpoint") from None
    return manifest


def written_recipe(path: Path, overrides: Sequence[str] = (), *, by: str | None) -> Recipe:
    """Read a recipe that version ``by`` of moslora wrote. In it ``trust_remote_code`` is off, whatever the file
    says."""
    try:
        return load_recipe(path, [NO_TRUST, *overrides])
    except UsageError as fault:
        if by in (None, __version__):
            raise
        versions = f"written by moslora {by}, this is {__version__}"
        raise UsageError(
            f"{path}: cannot be read by this version; {versions}; use that version ({first_line(fault)})"
        ) from None
