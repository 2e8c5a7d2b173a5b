"""The adapter that weights were made from.

A merged or exported folder has it in ``origin.json``; a run that continued another adapter, in its manifests and its
``run.json``. The record never has a path of this machine. Importing this module does not load torch.
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
    """Adapter from which a merge or an export was made, or which a run continued."""

    run: str  # name of its run, or of the folder of PEFT's adapter
    adapter: str  # sha256 of its weights
    step: int | None = None  # step of the adapter; ``None`` if no run of moslora trained it
    steps: int | None = None  # planned steps of its run; ``None`` if unknown, or if validations chose the step or end
    base: str = ""  # hub id or built-in name of its base, or the last part of a local path
    fingerprint: str = ""  # fingerprint of the base
    gate_tasks: tuple[str, ...] = ()  # tasks whose embeddings its task gate was trained on
    continued_from: "Origin | None" = None  # adapter that its run continued
    strength: float | None = None  # strength of its change of the base; ``None`` as it was trained

    @property
    def unfinished(self) -> bool:
        """Whether the adapter is a checkpoint before the last planned step of its run."""
        return self.step is not None and self.steps is not None and self.step < self.steps

    @property
    def facts(self) -> dict[str, Any]:
        """JSON values for the manifests of a run that continues the adapter, which `predecessor_of` reads back."""
        return {CONTINUED_FROM: asdict(replace(self, base=""))}  # the base may be a path

    @property
    def with_hash(self) -> str:
        """Name of the adapter in words, with the hash of its weights and the adapters that it continued."""
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
    """Write ``origin.json`` into ``folder``."""
    write_json(folder / ORIGIN, {**asdict(origin), "moslora": __version__})


def read_origin(folder: Path) -> Origin | None:
    """Origin in ``folder``; ``None`` if its ``origin.json`` is missing or damaged."""
    try:
        origin = TypeAdapter(Origin).validate_json((folder / ORIGIN).read_bytes(), strict=True)
    except (OSError, ValidationError):
        return None
    return replace(origin, run=printable(origin.run), base=printable(origin.base))


def predecessor_of(facts: Mapping[str, Any]) -> Origin | None:
    """Adapter that a run continued, by its manifest or its ``run.json``; ``None`` if it started at the base."""
    values = facts.get(CONTINUED_FROM)
    return None if values is None else TypeAdapter(Origin).validate_python(_upgraded(values))


def _upgraded(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the facts of an origin in the present form; earlier versions have its step as ``steps``."""
    if "sha256" not in values:
        return values
    before = values[CONTINUED_FROM]
    return {
        "run": values["name"],
        "adapter": values["sha256"],
        "step": values["steps"],
        "gate_tasks": values["gate_tasks"],
        CONTINUED_FROM: before and _upgraded(before),
        STRENGTH: values.get(STRENGTH),
    }


def locate_predecessor(place: str) -> Path:
    """Folder that ``adapter.continue_from`` names: an adapter folder, or one in PEFT's format.

    For an unfinished run it is the newest checkpoint, with a note.
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
    """Origin of the adapter in PEFT's format in ``folder``. An export of a run has the run's name."""
    _, weights = adapter_files(folder)
    origin = read_origin(folder) or Origin(folder.resolve().name, "")
    return replace(origin, adapter=sha256(weights))


def hash_of_predecessor(place: str | None) -> str | None:
    """sha256 of the weights that ``adapter.continue_from`` names; ``None`` without it."""
    if place is None:
        return None
    folder = locate_predecessor(place)
    if has_adapter_files(folder):
        return origin_of_peft(folder).adapter
    digest: str = read_manifest(folder)["sha256"][WEIGHTS]
    return digest
