"""Index of an experiment, ``experiment.json``: its runs, arm by arm, and the planned comparisons.

`moslora.experiment.study` writes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from moslora.compare.margin import read_margin
from moslora.errors import MosloraError, first_line
from moslora.files import write_text
from moslora.recipe import Recipe, stack_recipe
from moslora.recipe.yaml_text import parse
from moslora.runs.conditions import Conditions
from moslora.runs.outcomes import OutcomeName

EXPERIMENT = "experiment.json"
"""Name of the file."""

MarginText = Annotated[str, BeforeValidator(lambda margin: str(read_margin(margin)))]
"""Text of a margin, such as 0.01 or 20%, for pydantic."""


@dataclass(frozen=True)
class ExperimentRun:
    """A run of an experiment that is to be scored and has a folder.

    Attributes:
        arm: name of its arm.
        seed: its seed.
        learning_rate: its learning rate.
        folder: its folder, relative to the experiment's.
        diverged: whether it diverged, and therefore has no answers.
    """

    arm: str
    seed: int
    learning_rate: float
    folder: str
    diverged: bool = False


@dataclass(frozen=True)
class ArmCard:
    """Recipe and provenance of the runs of an arm.

    Attributes:
        recipe: text of its recipe; its learning rate and seed do not count, as each run has its own.
        made_with: provenances in the ``run.json`` of its runs, each once (`moslora.experiment.provenance`).
        of: arm whose adapters it applies at a strength; empty for an arm that trains.
    """

    recipe: str
    made_with: tuple[Mapping[str, Any], ...]
    of: str = ""

    def read_recipe(self) -> Recipe:
        """Return the recipe, for comparison with another one only: its paths are not resolved."""
        return _parsed(self.recipe)


@cache
def _parsed(recipe: str) -> Recipe:
    return stack_recipe([(EXPERIMENT, parse(recipe))], name="arm", folder=Path())


@dataclass(frozen=True)
class Card:
    """Origin of the runs in the tables of an experiment (`moslora.compare.tables`).

    Attributes:
        arms: name -> card of the arm.
        asked: conditions of all evaluations; ``None`` if no run was scored.
    """

    arms: Mapping[str, ArmCard]
    asked: Conditions | None


@dataclass(frozen=True)
class ExperimentIndex:
    """Content of ``experiment.json``.

    Attributes:
        name: name of the experiment.
        contrast: planned comparison, the second arm against the first.
        outcome: name of the outcome that is compared.
        runs: scored runs that have a folder.
        others: further planned comparisons.
        file: experiment file, relative to the folder, as both may be moved together.
        margin: largest negligible difference, such as 0.01, or 20% of the first arm's gain; ``None`` for the
            outcome's own.
        card: origin of the runs that are in tables; ``None`` without tables.
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
        """All planned comparisons."""
        return (self.contrast, *self.others)

    def write(self, folder: Path) -> None:
        """Write the index into ``folder``, without the keys ``margin`` and ``card`` if it has none."""
        unused = {name for name in ("margin", "card") if getattr(self, name) is None}
        text = TypeAdapter(ExperimentIndex).dump_json(self, indent=2, exclude=unused).decode()
        write_text(folder / EXPERIMENT, f"{text}\n")


def read_index(folder: Path) -> ExperimentIndex | None:
    """Return the index in ``folder``; ``None`` if the folder is not an experiment's.

    Raises:
        MosloraError: the file is damaged.
    """
    path = folder / EXPERIMENT
    if not path.is_file():
        return None
    try:
        return TypeAdapter(ExperimentIndex).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise MosloraError(
            f"{path}: not an experiment's file ({first_line(error)}); remove this file, not the runs, and repeat the"
            " experiment"
        ) from None
