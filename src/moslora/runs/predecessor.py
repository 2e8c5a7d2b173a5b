"""The adapter that a training continues (``adapter.continue_from``): where it is, and what a run keeps of it in its
manifests and in ``run.json``.

Importing this does not load torch.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from moslora.console import note_once
from moslora.errors import UsageError
from moslora.files import sha256
from moslora.recipe.builtin import printable
from moslora.runs.manifest import WEIGHTS, read_manifest
from moslora.runs.origin import read_origin
from moslora.runs.peft_files import adapter_files, has_adapter_files, hub_hint
from moslora.runs.run import Run, locate_adapter, run_of, unfinished

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
    gate_tasks: Sequence[str] = ()
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
    found = facts.get(CONTINUED_FROM)
    if found is None:
        return None
    known = {field.name: found[field.name] for field in fields(Predecessor) if field.name in found}
    known["gate_tasks"] = tuple(known.get("gate_tasks", ()))
    known[CONTINUED_FROM] = predecessor_of(found)
    return Predecessor(**known)


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
        fix = ""
        if not path.parent.is_dir():
            fix = hub_hint(place)
        raise UsageError(f"adapter.continue_from = {error}{fix}") from None
    remark = unfinished(path, folder, doing="continuing from")
    if remark:
        note_once(remark)
    return folder


def own_predecessor(folder: Path, manifest: Mapping[str, Any], *, gated_by_task: bool) -> Predecessor:
    """The adapter of ours in ``folder`` with this ``manifest``."""
    before = predecessor_of(manifest)
    gate_tasks: set[str] = set()
    if gated_by_task:
        gate_tasks.update(manifest["data"]["tasks"])
        if before is not None:
            gate_tasks.update(before.gate_tasks)
    return Predecessor(
        sha256=manifest["sha256"][WEIGHTS],
        name=run_of(folder).name,
        steps=manifest.get("step"),
        gate_tasks=tuple(sorted(gate_tasks)),
        continued_from=before,
    )


def peft_predecessor(folder: Path) -> Predecessor:
    """The adapter in PEFT's format in ``folder``; an export of a run says which run that was."""
    _, weights = adapter_files(folder)
    origin = read_origin(folder)
    if origin is None:
        return Predecessor(sha256(weights), folder.resolve().name)
    return Predecessor(sha256(weights), printable(origin.run), origin.step)


def remark_on_start(run: Run) -> str:
    """What is said of a finished run whose validation loss is no lower than that of the adapter that it continued;
    empty for another, and where the accuracy chose its result, which may rise with the loss."""
    if predecessor_of(run.facts) is None or run.recipe.training.is_selected_by_accuracy:
        return ""
    before = [row["validation_loss"] for row in run.metrics if row["step"] == 0 and "validation_loss" in row]
    after = run.validation_loss
    if not before or before[0] is None or after is None or after < before[0]:
        return ""
    return (
        f"validation loss {after:.4f}, and {before[0]:.4f} before the first step: by the loss on the validation"
        " rows the run is no better than the adapter that it continues"
    )


def hash_of_predecessor(place: str) -> str:
    """sha256 of the weights that ``adapter.continue_from`` names."""
    folder = locate_predecessor(place)
    if has_adapter_files(folder):
        return peft_predecessor(folder).sha256
    digest: str = read_manifest(folder)["sha256"][WEIGHTS]
    return digest
