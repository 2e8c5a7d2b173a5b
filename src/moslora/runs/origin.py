"""Where weights are from: of a folder made of an adapter, ``origin.json`` beside them; of a run that continued another
adapter, a key of its manifests and of its ``run.json``.

Both name no path. Other readers of a folder ignore ``origin.json``. Importing this does not load torch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from moslora.files import write_json
from moslora.recipe.builtin import printable
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

    @property
    def unfinished(self) -> bool:
        return self.step is not None and self.steps is not None and self.step < self.steps

    @property
    def facts(self) -> dict[str, Any]:
        """JSON values for the manifests of a run that continues it, from which `predecessor_of` reads it back."""
        before = self.continued_from.facts if self.continued_from else {CONTINUED_FROM: None}
        known = {"sha256": self.adapter, "name": self.run, "steps": self.step, "gate_tasks": self.gate_tasks}
        return {CONTINUED_FROM: known | before}

    @property
    def with_hash(self) -> str:
        """In words, also what it was continued from."""
        said = f"{self} (sha256 {self.adapter[:12]}…)"
        if self.continued_from is not None:
            said += f", which continued {self.continued_from.with_hash}"
        return said

    def __str__(self) -> str:
        if self.step is None:
            return self.run
        if not self.steps:
            return f"step {self.step:,} of {self.run}"
        return f"step {self.step:,} of {self.steps:,} of {self.run}"


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
    if known is None:
        return None
    gate_tasks = tuple(known["gate_tasks"])
    return Origin(known["name"], known["sha256"], known["steps"], None, "", "", gate_tasks, predecessor_of(known))
