"""What a run keeps of the adapter that it continued, in its manifests and in ``run.json``.

Importing this does not load torch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter

CONTINUED_FROM = "continued_from"
"""Key of a `Predecessor` in a manifest and in ``run.json``."""


@dataclass(frozen=True)
class Predecessor:
    """The adapter whose weights a run started with.

    Attributes:
        sha256: of the file of its weights.
        name: of its run; of an adapter of PEFT, of its folder.
        steps: number of updates that its run had made; ``None`` if another program trained it.
        gate_tasks: the tasks whose embeddings its task gate had trained.
        continued_from: the adapter that it had continued itself.
    """

    sha256: str
    name: str
    steps: int | None = None
    gate_tasks: tuple[str, ...] = ()
    continued_from: "Predecessor | None" = None

    @property
    def facts(self) -> dict[str, Any]:
        """JSON values, from which `predecessor_of` reads it back equal."""
        return {CONTINUED_FROM: asdict(self)}

    def __str__(self) -> str:
        said = self.name
        if self.steps is not None:
            said = f"step {self.steps:,} of {self.name}"
        said += f" (sha256 {self.sha256[:12]}…)"
        if self.continued_from is not None:
            said += f", which continued {self.continued_from}"
        return said


def predecessor_of(facts: Mapping[str, Any]) -> Predecessor | None:
    """What a manifest or a ``run.json`` says, without what only a later version knows; ``None`` if the run did not
    continue another adapter."""
    return TypeAdapter(Predecessor | None).validate_python(facts.get(CONTINUED_FROM))


def tasks_of_gate(manifest: Mapping[str, Any]) -> list[str]:
    """The tasks whose embeddings a task gate with this ``manifest`` has trained, also before it was continued."""
    tasks = list(manifest["data"]["tasks"])
    before = predecessor_of(manifest)
    if before is not None:
        tasks += before.gate_tasks
    return list(dict.fromkeys(tasks))
