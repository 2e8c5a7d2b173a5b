"""The index of an experiment: its runs, arm by arm, and what is to be compared. Experiments write it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, TypeAdapter, ValidationError

from moslora.compare.margin import read_margin
from moslora.errors import MosloraError, first_line
from moslora.files import write_text
from moslora.runs.outcomes import OutcomeName

EXPERIMENT = "experiment.json"


def _as_typed(text: str) -> str:
    return str(read_margin(text))


MarginText = Annotated[str, AfterValidator(_as_typed)]
"""A margin as it is typed, for pydantic."""


@dataclass(frozen=True)
class ExperimentRun:
    """One scored run."""

    arm: str
    seed: int
    learning_rate: float
    folder: str  # as seen from the experiment's
    diverged: bool = False  # and so without answers


@dataclass(frozen=True)
class ExperimentIndex:
    """The content of ``experiment.json``.

    Attributes:
        name: of the experiment.
        contrast: the comparison named beforehand: the second arm against the first.
        outcome: the number that is compared.
        runs: those that are scored.
        others: comparisons that were named with ``contrast``.
        file: the experiment's, as seen from the folder: both may be moved.
        margin: the largest difference that does not matter, such as 20%; ``None`` for the outcome's own.
    """

    name: str
    contrast: tuple[str, str]
    outcome: OutcomeName
    runs: tuple[ExperimentRun, ...]
    others: tuple[tuple[str, str], ...] = ()
    file: str = ""
    margin: MarginText | None = None

    @property
    def named(self) -> tuple[tuple[str, str], ...]:
        """All comparisons named beforehand."""
        return (self.contrast, *self.others)

    def write(self, folder: Path) -> None:
        text = TypeAdapter(ExperimentIndex).dump_json(self, indent=2, exclude_none=True).decode()
        write_text(folder / EXPERIMENT, f"{text}\n")


def read_index(folder: Path) -> ExperimentIndex | None:
    """The index that `ExperimentIndex.write` wrote; ``None`` in a folder that is no experiment's."""
    path = folder / EXPERIMENT
    if not path.is_file():
        return None
    try:
        return TypeAdapter(ExperimentIndex).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise MosloraError(
            f"{path}: not an experiment ({first_line(error)}); remove it and run the experiment again"
        ) from None
