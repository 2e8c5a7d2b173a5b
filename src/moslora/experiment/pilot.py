"""Runs that are there, from which the power of an experiment is computed: what their differences vary by, and what they
cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

from moslora.compare.arms import Arm, load_arms
from moslora.compare.comparison import compare_loaded
from moslora.compare.find import runs_at
from moslora.compare.statistics import MACRO
from moslora.console import unsaid
from moslora.errors import MosloraError, UsageError
from moslora.experiment.power import Components, mean_of
from moslora.runs.outcomes import Outcome
from moslora.runs.run import Run


@dataclass(frozen=True)
class Spread:
    """What the differences in an outcome vary by.

    Attributes:
        unit: of the outcome.
        contrasts: number of those that it is the mean of.
        sets: number of sets of questions, or texts.
        gain: what the first arms of the contrasts gained over their base, on average; ``None`` if it is not known.
        components: in units of the outcome.
    """

    unit: Outcome
    contrasts: int
    sets: int
    gain: float | None
    components: Components


@dataclass(frozen=True)
class Cost:
    """What a run costs, by the medians of runs that are there.

    Attributes:
        training: seconds of a training.
        question: seconds of a question; ``None`` where no run has recorded it.
        runs: number of those runs.
        device: where they ran, as their cards say.
    """

    training: float
    question: float | None
    runs: int
    device: str

    def hours(self, runs: int, *, questions: float) -> float:
        """Of so many runs, one after the other, each with so many questions in all."""
        seconds = self.training
        if self.question is not None:
            seconds += self.question * questions
        return runs * seconds / 3600


class Pilot:
    """An experiment or other runs, in a folder.

    Raises:
        UsageError: it has no two arms with runs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self._arms: Sequence[Arm] = load_arms([folder])
        except MosloraError as error:
            raise UsageError(f"{error}; choose a pilot, runs of two arms with several seeds, by --pilot") from None

    def spread(self, outcome: str) -> Spread:
        """That of an outcome: the mean over the contrasts that were named for these runs, or else of all arms with the
        first.

        Raises:
            UsageError: the runs do not have the outcome, or no contrast has two seeds.
        """
        with unsaid():
            try:
                found = compare_loaded(self._arms, [self.folder], outcome=outcome)
            except UsageError as error:
                raise UsageError(
                    f"{self.folder}: no pilot for {outcome} ({error}); choose another by --pilot"
                ) from None
        contrasts = [contrast for contrast in found.named or found.exploratory if contrast.seeds > 1]
        if not contrasts:
            raise UsageError(
                f"{self.folder}: no two arms share two seeds, which it takes to know what a seed changes; choose other"
                " runs by --pilot"
            )
        sets = len(contrasts[0].y)
        components = []
        gains = []
        for contrast in contrasts:
            components.append(Components.of(contrast.effects[MACRO].law, questions=contrast.questions() / sets))
            if contrast.gains is not None:
                gains.append(abs(contrast.gains[0].difference))
        gain = None
        if gains:
            gain = fmean(gains)
        return Spread(contrasts[0].unit, len(contrasts), sets, gain, mean_of(components))

    def cost(self) -> Cost | None:
        """``None`` if no run says how long it took."""
        facts = [Run(path).facts for path in runs_at(self.folder)]
        timed = [one for one in facts if "seconds" in one]
        if not timed:
            return None
        scorings = [one["experiment"]["scoring"] for one in timed if "scoring" in one.get("experiment", {})]
        question = None
        if scorings:
            question = median(scoring["seconds"] / scoring["questions"] for scoring in scorings)
        return Cost(
            training=median(one["seconds"] for one in timed),
            question=question,
            runs=len(timed),
            device=timed[0].get("hardware", {}).get("device", "an unknown device"),
        )
