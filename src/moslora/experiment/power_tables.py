"""What an experiment's file would find and cost, as tables and in words."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from moslora.compare.margin import Margin
from moslora.compare.statistics import LEVEL, POWER
from moslora.errors import UsageError, counted
from moslora.experiment.file import Experiment
from moslora.experiment.pilot import Cost, Pilot, Spread
from moslora.experiment.power import MOST_SEEDS, seeds_for_margin
from moslora.runs.outcomes import Outcome

SEEDS = (3, 4, 6, 8, 12, 16, 24)
"""Numbers of seeds in a table, beside the file's own."""

QUESTIONS = (0.25, 0.5, 1, 2, 4)
"""Numbers of questions of each set, as multiples of the file's."""


@dataclass(frozen=True)
class Forecast:
    """What a file would find, if its runs vary as those of a pilot do.

    Attributes:
        arms: those that would run.
        margin: the largest difference of the file's outcome that does not matter; ``None`` for the file's, or else the
            outcome's.

    Raises:
        UsageError: none of the file's comparisons is between these arms.
    """

    experiment: Experiment
    arms: Sequence[str]
    pilot: Pilot
    margin: Margin | None = None

    def __post_init__(self) -> None:
        named = self.experiment.file.named
        if not any(set(contrast).issubset(self.arms) for contrast in named):
            before, after = named[0]
            raise UsageError(
                f"{', '.join(self.arms)}: none of the comparisons is among these arms; name both of one, such as"
                f" {before} {after}, or all"
            )

    @property
    def _level(self) -> float:
        """Of each contrast: Bonferroni's."""
        return LEVEL / len(self.experiment.file.named)

    @cached_property
    def _spreads(self) -> Mapping[str, Spread]:
        """Of each outcome that the file names, its own first."""
        file = self.experiment.file
        return {outcome: self.pilot.spread(outcome) for outcome in (file.outcome, *file.also)}

    @cached_property
    def _cost(self) -> Cost | None:
        return self.pilot.cost()

    def _questions(self, spread: Spread) -> float:
        """Questions of each set: the file's limit, or as many as the pilot has."""
        recipe = next(iter(self.experiment.recipes.values()))
        return recipe.evaluation.limit or spread.components.questions

    def tables(self) -> Iterator[list[list[str]]]:
        """Of each outcome that the file names: seeds × questions, with the smallest difference and the smallest margin
        that are found."""
        for outcome, spread in self._spreads.items():
            yield self._table(outcome, spread)

    def _table(self, outcome: str, spread: Spread) -> list[list[str]]:
        own = self._questions(spread)
        columns = [round(own * share) for share in QUESTIONS]
        titles = [f"{count:,} questions" for count in columns]
        if spread.unit.of_runs:
            columns = [round(own)]
            titles = ["of any number of questions"]
        rows = [[f"{outcome}, {spread.unit.unit}: seeds", *titles, "hours"]]
        for seeds in sorted({*SEEDS, len(self.experiment.file.seeds)}):
            cells = [self._found(spread, seeds, count) for count in columns]
            rows.append([str(seeds), *cells, self._hours(seeds, own * spread.sets)])
        return rows

    def _found(self, spread: Spread, seeds: int, questions: float) -> str:
        """Difference / margin."""
        design = spread.components.design(seeds, questions)
        difference = design.smallest_difference(self._level)
        margin = design.smallest_margin(self._level)
        return f"{_size(spread.unit, difference)} / ±{_size(spread.unit, margin)}"

    def _hours(self, seeds: int, questions: float) -> str:
        if self._cost is None:
            return "–"
        return f"{self._cost.hours(len(self.arms) * seeds, questions=questions):.1f}"

    def lines(self) -> Iterator[str]:
        """What the numbers are, and what holds of the file as it is."""
        file = self.experiment.file
        spread = self._spreads[file.outcome]
        yield (
            f"smallest difference that is found / margin within which equality is, each with {100 * POWER:.0f} % power"
            f" among {counted(len(file.named), 'contrast')}; questions are of each set"
        )
        yield (
            f"variances: mean of {counted(spread.contrasts, 'contrast')} of {self.pilot.folder};"
            f" {_cost_in_words(self._cost, arms=len(self.arms))}"
        )
        searched = len(self.experiment.search(tuple(self.arms)))
        if searched:
            yield f"the search for the learning rates takes up to {counted(searched, 'run')} more"
        yield self._of_file(spread)
        yield self._for_margin(spread)

    def _of_file(self, spread: Spread) -> str:
        """What the file finds as it is."""
        seeds = len(self.experiment.file.seeds)
        questions = self._questions(spread)
        design = spread.components.design(seeds, questions)
        unit = spread.unit
        difference = _size(unit, design.smallest_difference(self._level))
        margin = _size(unit, design.smallest_margin(self._level))
        return (
            f"{seeds} seeds × {questions:,.0f} questions: differences of {difference} {unit.unit}, equality within"
            f" ±{margin}"
        )

    def _for_margin(self, spread: Spread) -> str:
        """What equality within the margin takes."""
        unit = spread.unit
        questions = self._questions(spread)
        margin = self._margin(spread)
        within = f"equality within ±{margin:.3g} {unit.unit}"
        seeds = seeds_for_margin(spread.components, margin=margin / unit.factor, questions=questions, level=self._level)
        if seeds is None:
            return f"{within}: not with {MOST_SEEDS} seeds of {questions:,.0f} questions; ask more, or widen the margin"
        runs = len(self.arms) * seeds
        found = f"{within} takes {seeds} seeds: {counted(runs, 'run')}"
        if self._cost is not None:
            found += f", about {self._cost.hours(runs, questions=questions * spread.sets):.1f} hours"
        return found

    def _margin(self, spread: Spread) -> float:
        """The margin in the unit of the outcome."""
        margin = self.margin or self.experiment.file.margin
        if margin is None:
            return spread.unit.margin
        if not margin.of_gain:
            return margin.size
        if spread.gain is None:
            raise UsageError(
                f"margin {margin}: a share of the gain over the base, whose answers {self.pilot.folder} does not have;"
                f" give a number, such as --margin {spread.unit.margin:g}"
            )
        return margin.size * spread.gain * spread.unit.factor


def _cost_in_words(cost: Cost | None, *, arms: int) -> str:
    """Where the hours are from."""
    if cost is None:
        return "no run there says how long it took"
    found = (
        f"hours: {counted(arms, 'arm')}, one run after the other, by the medians of {cost.runs} runs on {cost.device}"
    )
    found += f" ({cost.training:.0f} s to train"
    if cost.question is None:
        return f"{found}; scoring is left out, as none has recorded its time)"
    return f"{found}, {1000 * cost.question:.0f} ms a question)"


def _size(unit: Outcome, value: float) -> str:
    """A difference without its sign."""
    return unit.change(value).lstrip("+")
