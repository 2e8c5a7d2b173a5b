"""The strength C of an adapter whose change of the base is C times that of a run: W + C · (W' − W).

A key of its manifest and of its ``run.json``. Importing this does not load torch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

STRENGTH = "strength"

MAX_STRENGTH = 2.0
"""Largest strength."""


@dataclass(frozen=True)
class Strength:
    """How strongly an adapter applies what a run has learned.

    Attributes:
        value: C.
        run: name of the run.
        adapter: sha256 of the run's own weights.
    """

    value: float
    run: str
    adapter: str

    @property
    def facts(self) -> dict[str, Any]:
        """JSON values, from which `strength_of` reads it back equal."""
        return {STRENGTH: asdict(self)}

    def __str__(self) -> str:
        return f"{self.value:g} of {self.run}"


def strength_of(facts: Mapping[str, Any]) -> Strength | None:
    """The strength that a manifest or a ``run.json`` names; ``None`` for an adapter as it was trained."""
    known = facts.get(STRENGTH)
    return Strength(**known) if known else None
