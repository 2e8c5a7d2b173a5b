"""The sizes of the quickstart, and which of them this machine takes in five minutes."""

from collections.abc import Mapping
from dataclasses import dataclass

from moslora.choices import SizeName
from moslora.recipe import Recipe
from moslora.runs.outcomes import OutcomeName

SECONDS_TO_CHOOSE = 280
"""Most seconds, by the estimate, of the size that is chosen: five minutes, with a fifteenth to spare."""

SECONDS_BESIDE = 30.0
"""Loading the model four times, starting processes, the merge and its proof."""

TRAINED = 51_000
"""Work of the full size's training rows: their 65,637 tokens, each of which takes a process per core about 0.78 of the
time that it takes the measurement's one process."""

VALIDATED = 3_500
"""Work of the validations."""

ASKED = 390
"""Work of one question of each of the eight sets, asked of the base and of the tuned model."""

# Work is counted in tokens that take the time of one that the measurement trains. The figures are estimates from the
# CPU seconds of one thread, SmolLM2-135M in float32 on an AMD EPYC; README.md has what was announced and taken.


@dataclass(frozen=True)
class Size:
    """How much of the recipe a quickstart takes.

    Attributes:
        name: as typed.
        part: 1 / this of the recipe's training rows.
        questions: of each of the eight sets.
        outcome: what the conclusion is about; few questions show a gain by log-probability, and not by accuracy.
    """

    name: SizeName
    part: int
    questions: int
    outcome: OutcomeName

    def overrides(self, recipe: Recipe) -> list[str]:
        """What it changes in ``recipe``, which has numbers of rows by task."""
        rows = recipe.data.rows
        if self.part == 1 or not isinstance(rows, dict):
            return []
        changed = [f"data.rows.{task}={round(number / self.part)}" for task, number in rows.items()]
        return [*changed, f"evaluation.limit={self.questions}"]

    def seconds(self, speed: float) -> float:
        """An estimate of the time of the whole quickstart where ``speed`` tokens a second are trained."""
        work = TRAINED / self.part + VALIDATED + ASKED * self.questions
        return SECONDS_BESIDE + work / speed


SIZES: Mapping[SizeName, Size] = {
    size.name: size
    for size in (
        Size("full", 1, 256, "accuracy"),
        Size("half", 2, 128, "log_probability"),
        Size("third", 3, 64, "log_probability"),
    )
}
"""The largest first."""


def size_of(recipe: Recipe) -> Size:
    """The size of a run with this ``recipe``, told by its number of questions; the full one for any other number."""
    for size in SIZES.values():
        if size.questions == recipe.evaluation.limit:
            return size
    return SIZES["full"]


def largest_in_time(speed: float) -> Size:
    """The largest size that takes at most :data:`SECONDS_TO_CHOOSE`, or else the smallest."""
    for size in SIZES.values():
        if size.seconds(speed) <= SECONDS_TO_CHOOSE:
            return size
    return size
