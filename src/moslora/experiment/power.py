"""Power of an experiment: the difference that it would show with other numbers of seeds and questions.

The difference of two arms over S seeds and n questions of each set has the variance

    σ²_s / S + σ²_q / n + σ²_b / (S n)

σ²_s is the variance between seeds, σ²_q that between questions, σ²_b that of their interaction. All three are means
over the contrasts of the comparison (`moslora.compare.distribution`).
"""

from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import fmean

from moslora.compare.comparison import compare_paths
from moslora.compare.distribution import DifferenceDistribution, VarianceEstimate
from moslora.compare.statistics import LEVEL, POWER
from moslora.errors import UsageError, counted
from moslora.runs.scores import MACRO

SEEDS = (3, 4, 6, 8, 12, 16, 24)
"""Numbers of seeds in the table, besides the experiment's own."""

QUESTIONS = (0.25, 0.5, 1, 2, 4)
"""Numbers of questions of each set, as multiples of the experiment's own."""


@dataclass(frozen=True)
class Components:
    """Components of the variance of a difference, with one seed and ``questions`` of each set.

    The estimates are unbiased, so they may be below 0.

    Attributes:
        seed: σ²_s.
        question: σ²_q / n.
        both: σ²_b / n.
        questions: n.
        degrees: degrees of freedom of the questions' variance.
    """

    seed: float
    question: float
    both: float
    questions: float
    degrees: float

    @classmethod
    def of(cls, distribution: DifferenceDistribution, *, questions: float) -> "Components":
        """Return the components of a difference that was estimated with several seeds and ``questions`` of each set."""
        seeds = distribution.seeds.degrees + 1
        return cls(
            seed=(distribution.seeds.variance - distribution.interaction) * seeds,
            question=distribution.questions.variance - distribution.interaction,
            both=distribution.interaction * seeds,
            questions=questions,
            degrees=distribution.questions.degrees,
        )

    def distribution(self, *, seeds: int, questions: float) -> DifferenceDistribution:
        """Return the distribution of a difference of 0, estimated with so many seeds and questions of each set."""
        share = self.questions / questions
        both = self.both * share / seeds
        return DifferenceDistribution(
            difference=0.0,
            seeds=VarianceEstimate(max(0.0, self.seed) / seeds + both, seeds - 1),
            questions=VarianceEstimate(max(0.0, self.question) * share + both, self.degrees / share),
            interaction=both,
        )


def power_of(folder: Path) -> tuple[list[list[str]], list[str]]:
    """Return a table of the smallest difference that would be found with power `POWER`, seeds × questions, and lines on
    what the numbers are.

    Args:
        folder: folder with the runs of an experiment.

    Raises:
        UsageError: no named contrast has two seeds.
    """
    comparison = compare_paths([folder])
    several = [contrast for contrast in comparison.named if contrast.seeds > 1]
    if not several:
        raise UsageError(f"{folder}: no named contrast has two seeds, which it takes to measure how much seeds vary")
    measured = []
    for contrast in several:
        of_each_set = contrast.questions() / len(contrast.y)
        measured.append(astuple(Components.of(contrast.effects[MACRO].distribution, questions=of_each_set)))
    components = Components(*map(fmean, zip(*measured, strict=True)))  # all have the same questions
    most = max(contrast.seeds for contrast in several)
    outcome = comparison.outcome
    columns = {f"{components.questions * share:,.0f} questions": share for share in QUESTIONS}
    if outcome.of_runs:
        columns = {"smallest difference": 1}
    table = [[f"{outcome.title}, {outcome.unit}: seeds", *columns]]
    for seeds in sorted({*SEEDS, most}):
        row = [str(seeds)]
        for share in columns.values():
            distribution = components.distribution(seeds=seeds, questions=components.questions * share)
            # Each contrast has its share of the level.
            difference = distribution.detectable(level=LEVEL / comparison.count, power=POWER)
            row.append(outcome.change(difference).lstrip("+"))
        table.append(row)
    return table, [
        f"smallest difference that is shown (in about 4 of 5 such experiments), among"
        f" {counted(comparison.count, 'contrast')}; questions are of each set",
        f"variances: those of {most} seeds, mean of {counted(len(several), 'contrast')}",
    ]
