"""Where weights are from: of a folder made of an adapter, ``origin.json`` beside them; of a run that continued another
adapter, a key of its manifests and of its ``run.json``.

Both name no path. Other readers of a folder ignore ``origin.json``. Importing this does not load torch.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from moslora.console import note_once
from moslora.errors import UsageError
from moslora.files import sha256, write_json
from moslora.recipe.builtin import printable
from moslora.runs.manifest import WEIGHTS, read_manifest
from moslora.runs.peft_files import adapter_files, has_adapter_files, hub_hint
from moslora.runs.run import locate_adapter, remark_on_unfinished
from moslora.runs.strength import STRENGTH
from moslora.version import __version__

ORIGIN = "origin.json"

CONTINUED_FROM = "continued_from"
"""Key of the adapter that a run continued, in a manifest and in ``run.json``."""


@dataclass(frozen=True)
class Origin:
    """An adapter that weights are from."""

    run: str  # its name; of an adapter of PEFT, of its folder
    adapter: str  # sha256 of its weights
    step: int | None = None  # of the adapter; ``None`` for one that no training here has made
    steps: int | None = None  # that its run was to have; ``None`` if not known, or if validations chose the step or end
    base: str = ""  # its id on the hub, the built-in one's name, or the last part of a local path
    fingerprint: str = ""  # of the base
    gate_tasks: tuple[str, ...] = ()  # those whose embeddings its task gate had trained
    continued_from: "Origin | None" = None  # the adapter that its run had continued
    strength: float | None = None  # at which it applies what its run has learned; ``None`` as it was trained

    @property
    def unfinished(self) -> bool:
        return self.step is not None and self.steps is not None and self.step < self.steps

    @property
    def facts(self) -> dict[str, Any]:
        """JSON values for the manifests of a run that continues it, from which `predecessor_of` reads it back."""
        return {CONTINUED_FROM: asdict(replace(self, base=""))}  # which may be a path

    @property
    def with_hash(self) -> str:
        """In words, also what it was continued from."""
        said = f"{self} (sha256 {self.adapter[:12]}…)"
        if self.continued_from is not None:
            said += f", which continued {self.continued_from.with_hash}"
        return said

    def __str__(self) -> str:
        said = self.run
        if self.step is not None:
            of_steps = f" of {self.steps:,}" if self.steps else ""
            said = f"step {self.step:,}{of_steps} of {said}"
        if self.strength is not None:
            said = f"strength {self.strength:g} of {said}"
        return said


def write_origin(folder: Path, origin: Origin) -> None:
    write_json(folder / ORIGIN, {**asdict(origin), "moslora": __version__})


def read_origin(folder: Path) -> Origin | None:
    """What ``folder`` says; ``None`` if it does not say it."""
    try:
        origin = TypeAdapter(Origin).validate_json((folder / ORIGIN).read_bytes(), strict=True)
    except (OSError, ValidationError):
        return None
    return replace(origin, run=printable(origin.run), base=printable(origin.base))


def predecessor_of(facts: Mapping[str, Any]) -> Origin | None:
    """The adapter that a run continued, by its manifest or its ``run.json``; ``None`` if it continued none."""
    known = facts.get(CONTINUED_FROM)
    return None if known is None else TypeAdapter(Origin).validate_python(_upgraded(known))


def _upgraded(known: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the facts of an origin; those of earlier versions have its step as ``steps``."""
    if "sha256" not in known:
        return known
    before = known[CONTINUED_FROM]
    return {
        "run": known["name"],
        "adapter": known["sha256"],
        "step": known["steps"],
        "gate_tasks": known["gate_tasks"],
        CONTINUED_FROM: before and _upgraded(before),
        STRENGTH: known.get(STRENGTH),
    }


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
    remark = remark_on_unfinished(path, folder, doing="continuing from")
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
