"""The strength C of an adapter whose change of the base is C times that of a run: W + C · (W' − W).

It is a key of the adapter's manifest and of ``run.json``. Importing this module does not load torch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

STRENGTH = "strength"

MAX_STRENGTH = 2.0
"""Largest strength."""


@dataclass(frozen=True)
class Strength:
    """Strength of an adapter, and the run whose change of the base it scales.

    Attributes:
        value: factor C of the change, W + C · (W' − W).
        run: name of the run.
        adapter: sha256 of the run's own weights.
    """

    value: float
    run: str
    adapter: str

    @property
    def facts(self) -> dict[str, Any]:
        """The strength as JSON values for a manifest, which `strength_of` reads back."""
        return {STRENGTH: asdict(self)}

    def __str__(self) -> str:
        return f"{self.value:g} of {self.run}"


def strength_of(facts: Mapping[str, Any]) -> Strength | None:
    """Strength in a manifest or a ``run.json``; ``None`` for an adapter as it was trained."""
    values = facts.get(STRENGTH)
    return Strength(**values) if values else None
