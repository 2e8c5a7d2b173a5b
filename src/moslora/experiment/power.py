"""What difference the runs of an experiment would show with other numbers of seeds and questions.

The difference of two arms over S seeds and n questions of each set has the variance

    σ²_s / S + σ²_q / n + σ²_b / (S n)      of other seeds, of other questions, of both together

The three are those of the comparison (`moslora.compare.law`), on average over its contrasts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from moslora.compare.comparison import compare_paths
from moslora.compare.law import Law, Part
from moslora.compare.statistics import LEVEL, MACRO, POWER
from moslora.errors import UsageError, counted
from moslora.runs.outcomes import Outcome

SEEDS = (3, 4, 6, 8, 12, 16, 24)
"""Numbers of seeds in the table, beside the experiment's own."""

QUESTIONS = (0.25, 0.5, 1, 2, 4)
"""Numbers of questions of each set, as multiples of the experiment's."""


@dataclass(frozen=True)
class Components:
    """Variances of a difference D of two arms, with one seed and ``questions`` of each set. As estimates without bias,
    whose mean is one too, they may be below 0.

    Attributes:
        seed: σ²_s.
        question: σ²_q / n.
        both: σ²_b / n.
        questions: n.
        degrees: of the questions' variance.
    """

    seed: float
    question: float
    both: float
    questions: float
    degrees: float

    @classmethod
    def of(cls, law: Law, *, questions: float) -> "Components":
        """Those of a difference that was found with several seeds and so many questions of each set."""
        seeds = law.seeds.degrees + 1
        return cls(
            seed=(law.seeds.variance - law.interaction) * seeds,
            question=law.questions.variance - law.interaction,
            both=law.interaction * seeds,
            questions=questions,
            degrees=law.questions.degrees,
        )

    @classmethod
    def mean(cls, found: Sequence["Components"]) -> "Components":
        """The mean over contrasts with the same questions."""
        return cls(
            seed=fmean(one.seed for one in found),
            question=fmean(one.question for one in found),
            both=fmean(one.both for one in found),
            questions=found[0].questions,
            degrees=found[0].degrees,
        )

    def law(self, *, seeds: int, questions: float) -> Law:
        """The law of a difference of 0 that was found with so many seeds and questions of each set."""
        share = self.questions / questions
        both = self.both * share / seeds
        return Law(
            difference=0.0,
            seeds=Part(max(0.0, self.seed) / seeds + both, seeds - 1),
            questions=Part(max(0.0, self.question) * share + both, self.degrees / share),
            interaction=both,
        )


@dataclass(frozen=True)
class Power:
    """What the named contrasts of an experiment tell of its power.

    Attributes:
        unit: of the outcome.
        contrasts: number of those that were named, each of which is judged at its share of the level.
        measured: number of those that the variances are of.
        seeds: of the one that has most.
        components: in units of the outcome.
    """

    unit: Outcome
    contrasts: int
    measured: int
    seeds: int
    components: Components

    def table(self) -> list[list[str]]:
        """Seeds × questions, with the smallest difference that is shown."""
        own = self.components.questions
        columns = {f"{own * share:,.0f} questions": own * share for share in QUESTIONS}
        if self.unit.of_runs:
            columns = {"smallest difference": own}
        rows = [[f"{self.unit.title}, {self.unit.unit}: seeds", *columns]]
        for seeds in sorted({*SEEDS, self.seeds}):
            rows.append([str(seeds), *(self._smallest(seeds, questions) for questions in columns.values())])
        return rows

    def _smallest(self, seeds: int, questions: float) -> str:
        law = self.components.law(seeds=seeds, questions=questions)
        difference = law.detectable(level=LEVEL / self.contrasts, power=POWER)
        return self.unit.change(difference).lstrip("+")

    def lines(self) -> Iterator[str]:
        """What the numbers are."""
        yield (
            f"smallest difference that is shown (in about 4 of 5 such experiments), among"
            f" {counted(self.contrasts, 'contrast')}; questions are of each set"
        )
        yield f"variances: those of {self.seeds} seeds, mean of {counted(self.measured, 'contrast')}"


def power_of(folder: Path) -> Power:
    """The power of an experiment by its runs in ``folder``.

    Raises:
        UsageError: no contrast that was named has two seeds.
    """
    found = compare_paths([folder])
    several = [contrast for contrast in found.named if contrast.seeds > 1]
    if not several:
        raise UsageError(f"{folder}: no contrast that was named has two seeds, which tell what a seed changes")
    components = []
    for contrast in several:
        of_each_set = contrast.questions() / len(contrast.y)
        components.append(Components.of(contrast.effects[MACRO].law, questions=of_each_set))
    return Power(
        unit=found.unit,
        contrasts=found.count,
        measured=len(several),
        seeds=max(contrast.seeds for contrast in several),
        components=Components.mean(components),
    )
