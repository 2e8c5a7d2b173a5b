"""The index of an experiment: its runs, arm by arm, and what is to be compared. Experiments write it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, TypeAdapter, ValidationError

from moslora.compare.margin import read_margin
from moslora.errors import MosloraError, first_line
from moslora.files import write_text
from moslora.recipe import Recipe, stack_recipe
from moslora.recipe.yaml_text import parse
from moslora.runs.conditions import Conditions
from moslora.runs.outcomes import OutcomeName

EXPERIMENT = "experiment.json"


MarginText = Annotated[str, AfterValidator(lambda text: str(read_margin(text)))]
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
class ArmCard:
    """How the runs of an arm were made.

    Attributes:
        recipe: the text of its recipe, whatever its learning rate and seed.
        made_with: hashes and versions as in the ``run.json`` of its runs, each set of them once.
        of: the arm whose adapters it applies at a strength; empty of an arm that trains.
    """

    recipe: str
    made_with: tuple[Mapping[str, Any], ...]
    of: str = ""

    def read_recipe(self) -> Recipe:
        """Its recipe, which is compared, and never run."""
        return _parsed(self.recipe)


@cache
def _parsed(recipe: str) -> Recipe:
    return stack_recipe([(EXPERIMENT, parse(recipe))], name="arm", folder=Path())


@dataclass(frozen=True)
class Card:
    """How the runs in the tables of an experiment were made (`moslora.compare.tables`).

    Attributes:
        arms: their names, and how their runs were made.
        asked: how their questions were asked; ``None`` if none was scored.
    """

    arms: Mapping[str, ArmCard]
    asked: Conditions | None


@dataclass(frozen=True)
class ExperimentIndex:
    """The content of ``experiment.json``.

    Attributes:
        name: of the experiment.
        contrast: the comparison named beforehand: the second arm against the first.
        outcome: the number that is compared.
        runs: those that are scored and have a folder.
        others: comparisons that were named with ``contrast``.
        file: the experiment's, as seen from the folder: both may be moved.
        margin: the largest difference that does not matter, such as 20%; ``None`` for the outcome's own.
        card: of the runs that are in tables; ``None`` without any.
    """

    name: str
    contrast: tuple[str, str]
    outcome: OutcomeName
    runs: tuple[ExperimentRun, ...]
    others: tuple[tuple[str, str], ...] = ()
    file: str = ""
    margin: MarginText | None = None
    card: Card | None = None

    @property
    def named(self) -> tuple[tuple[str, str], ...]:
        """All comparisons named beforehand."""
        return (self.contrast, *self.others)

    def write(self, folder: Path) -> None:
        unused = {name for name in ("margin", "card") if getattr(self, name) is None}
        text = TypeAdapter(ExperimentIndex).dump_json(self, indent=2, exclude=unused).decode()
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
