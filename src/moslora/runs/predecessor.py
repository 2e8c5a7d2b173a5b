"""The adapter that a training continues (``adapter.continue_from``): where it is, and what a run is to keep of it.

Importing this does not load torch.
"""

import os
from dataclasses import replace
from pathlib import Path

from moslora.console import note_once
from moslora.errors import UsageError
from moslora.files import sha256
from moslora.runs.manifest import WEIGHTS, read_manifest
from moslora.runs.origin import Origin, read_origin
from moslora.runs.peft_files import adapter_files, has_adapter_files, hub_hint
from moslora.runs.run import locate_adapter, unfinished


def locate_predecessor(place: str) -> Path:
    """The folder that ``adapter.continue_from`` means: an adapter folder, or one in PEFT's format.

    Of an unfinished run it is the newest checkpoint, which is noted.
    """
    path = Path(os.path.expanduser(place))
    if has_adapter_files(path):
        return path
    try:
        folder = locate_adapter(path)
    except UsageError as error:
        fix = "" if path.parent.is_dir() else hub_hint(place)
        raise UsageError(f"adapter.continue_from = {error}{fix}") from None
    remark = unfinished(path, folder, doing="continuing from")
    if remark:
        note_once(remark)
    return folder


def origin_of_peft(folder: Path) -> Origin:
    """Of the adapter in PEFT's format in ``folder``; an export of a run says which run that was."""
    _, weights = adapter_files(folder)
    origin = read_origin(folder) or Origin(folder.resolve().name, "")
    return replace(origin, adapter=sha256(weights))


def hash_of_predecessor(place: str | None) -> str | None:
    """sha256 of the weights that ``adapter.continue_from`` names; ``None`` if it names none."""
    if place is None:
        return None
    folder = locate_predecessor(place)
    if has_adapter_files(folder):
        return origin_of_peft(folder).adapter
    digest: str = read_manifest(folder)["sha256"][WEIGHTS]
    return digest
