"""The index of an experiment: its runs, arm by arm, and what is to be compared. Experiments write it."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from moslora.choices import Outcome
from moslora.errors import MosloraError, first_line
from moslora.files import write_text

EXPERIMENT = "experiment.json"


@dataclass(frozen=True)
class ExperimentRun:
    """One scored run, in ``folder`` of the experiment's; a run that ``diverged`` has no answers."""

    arm: str
    seed: int
    learning_rate: float
    folder: str
    diverged: bool = False


@dataclass(frozen=True)
class ExperimentIndex:
    """The content of ``experiment.json``; ``contrast`` is the comparison named beforehand: the second arm against the
    first. ``others`` were named with it. ``file`` is the experiment's, as seen from the folder: both may be moved."""

    name: str
    contrast: tuple[str, str]
    outcome: Outcome
    runs: tuple[ExperimentRun, ...]
    others: tuple[tuple[str, str], ...] = ()
    file: str = ""

    def write(self, folder: Path) -> None:
        write_text(folder / EXPERIMENT, TypeAdapter(ExperimentIndex).dump_json(self, indent=2).decode() + "\n")


def read_index(folder: Path) -> ExperimentIndex | None:
    """The index that `ExperimentIndex.write` wrote; ``None`` in a folder that is no experiment's."""
    path = folder / EXPERIMENT
    try:
        return TypeAdapter(ExperimentIndex).validate_json(path.read_bytes()) if path.is_file() else None
    except (OSError, ValidationError) as error:
        raise MosloraError(
            f"{path}: not an experiment ({first_line(error)}); remove it, and give the experiment's command again"
        ) from None
