"""What a folder of weights was made of: ``origin.json`` beside them. Other readers of the folder ignore it.

It has the run's name, the adapter's step and how many its run was to have, the adapter's hash, and the base as others
know it, with its fingerprint. It names no path. Importing this does not load torch.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from moslora.files import write_json
from moslora.runs.best import TRAINED_STEPS
from moslora.runs.manifest import WEIGHTS
from moslora.version import __version__

if TYPE_CHECKING:
    from moslora.runs.adapter_folder import AdapterFolder

ORIGIN = "origin.json"


@dataclass(frozen=True)
class Origin:
    """Where weights are from."""

    run: str
    step: int | None  # of the adapter; ``None`` for one that no training here has made
    steps: int | None  # that its run was to have; ``None`` if not known, or if validations chose the step or the end
    base: str  # its id on the hub, the built-in one's name, or the last part of a local path
    fingerprint: str  # of the base
    adapter: str  # sha256 of its weights

    @property
    def unfinished(self) -> bool:
        return self.step is not None and self.steps is not None and self.step < self.steps

    def __str__(self) -> str:
        if self.step is None:
            return self.run
        if not self.steps:
            return f"step {self.step:,} of {self.run}"
        return f"step {self.step:,} of {self.steps:,} of {self.run}"


def origin_of(adapter: "AdapterFolder", *, base: str) -> Origin:
    """What is made of ``adapter`` comes from there; ``base`` is its base's name to others."""
    manifest = adapter.manifest
    steps = adapter.run.facts.get("steps")
    if TRAINED_STEPS in manifest:
        steps = None
    return Origin(
        run=adapter.recipe.name,
        step=manifest.get("step"),
        steps=steps,
        base=base,
        fingerprint=manifest["base"]["fingerprint"],
        adapter=manifest["sha256"][WEIGHTS],
    )


def write_origin(folder: Path, origin: Origin) -> None:
    write_json(folder / ORIGIN, {**asdict(origin), "moslora": __version__})


def read_origin(folder: Path) -> Origin | None:
    """What ``folder`` says; ``None`` if it does not say it."""
    try:
        return TypeAdapter(Origin).validate_json((folder / ORIGIN).read_bytes(), strict=True)
    except (OSError, ValidationError):
        return None
