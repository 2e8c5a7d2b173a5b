"""Tables of an experiment: the losses by learning rate with the chosen one, and the scores so far.

The tables on disk are in `moslora.compare.tables`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from moslora.compare.compared_run import ComparedRun, evaluations_of
from moslora.compare.gains import gain_in_words, gain_of, title_of_gain
from moslora.runs.evaluation import Evaluation
from moslora.runs.intervals import mean_of
from moslora.runs.outcomes import OUTCOMES

OVER_SEEDS = "± over seeds"
"""Title of a mean's standard error, which is over seeds and not over questions."""


@dataclass(frozen=True)
class Curve:
    """Validation losses of an arm by learning rate. The rate with the lowest mean loss is chosen.

    Attributes:
        arm: name of the arm.
        seeds: number of seeds of the search, which no scored run has.
        losses: learning rate -> losses of the seeds that are done, infinite if not finite.
    """

    arm: str
    seeds: int
    losses: Mapping[float, Sequence[float]]

    @property
    def complete(self) -> bool:
        """Whether every run of the search is done."""
        return all(len(losses) == self.seeds for losses in self.losses.values())

    @property
    def best(self) -> float | None:
        """Chosen rate; ``None`` while runs are missing, or if no loss was finite. A single rate needs no run."""
        if len(self.losses) == 1:
            return next(iter(self.losses))
        if not self.complete:
            return None
        means = {rate: fmean(losses) for rate, losses in self.losses.items()}
        lowest = min(means, key=means.__getitem__)
        if not math.isfinite(means[lowest]):
            return None
        return lowest

    @property
    def remark(self) -> str:
        """Remark if no loss was finite, or if the best rate is the lowest or highest tried; else empty."""
        rates = sorted(self.losses)
        best = self.best
        if best is None and self.complete:
            return f"{self.arm}: no learning rate had a finite validation loss, so no run is scored; add lower ones"
        if best is None or len(rates) == 1 or best not in (rates[0], rates[-1]):
            return ""
        side, neighbour = ("lowest", rates[1]) if best == rates[0] else ("highest", rates[-2])
        beyond = best**2 / neighbour  # by the same factor, on the other side
        return (
            f"{self.arm}: {best:g} is the {side} learning rate tried (--any-rate scores the arm so); one beyond it may"
            f" be better: add {beyond:.2g}"
        )


def rate_table(curves: Sequence[Curve]) -> list[list[str]]:
    """Return arms × rates: the mean validation loss, ± half the range over several seeds; * marks the chosen rate."""
    rates = sorted({rate for curve in curves for rate in curve.losses})
    rows = [["validation loss at learning rate", *(f"{rate:g}" for rate in rates)]]
    for curve in curves:
        rows.append([curve.arm, *(_losses_in_words(curve, rate) for rate in rates)])
    return rows


def _losses_in_words(curve: Curve, rate: float) -> str:
    """Return the cell of a rate; empty if the arm does not try it."""
    if rate not in curve.losses:
        return ""
    losses = curve.losses[rate]
    words = []
    if losses and not math.isfinite(sum(losses)):
        words.append("not finite")
    elif losses:
        words.append(f"{fmean(losses):.4f}")
        if len(losses) > 1:
            words.append(f"± {(max(losses) - min(losses)) / 2:.4f}")
    if 0 < len(losses) < curve.seeds:
        words.append(f"({len(losses)} of {curve.seeds})")
    if rate == curve.best:
        words.append("*")
    return " ".join(words) or "–"


def score_table(
    curves: Sequence[Curve],
    scored: Mapping[str, Sequence[ComparedRun]],
    *,
    outcomes: Sequence[str],
    seeds: int,
    strengths: Mapping[str, Sequence[float]],
    base: Evaluation | None = None,
) -> list[list[str]]:
    """Return arms × outcomes: the mean over the scored runs, and if ``base`` is given, the gain over it.

    Args:
        curves: curve of each arm.
        scored: arm -> its scored runs so far.
        outcomes: names of the outcomes.
        seeds: planned number of scored runs of each arm.
        strengths: arm -> strengths of its runs, for each arm that trains nothing.
        base: evaluation of the base model on the same questions.
    """
    titles = ["arm", "learning rate", *(["strength"] if strengths else []), "seeds"]
    for outcome in outcomes:
        titles.append(f"{OUTCOMES[outcome].title} {OVER_SEEDS}")
        if base is not None:
            titles.append(title_of_gain(OUTCOMES[outcome]))
    rows = [titles]
    for curve in curves:
        runs = scored[curve.arm]
        rate = "not chosen"
        if curve.best is not None:
            rate = f"{curve.best:g}"
        cells = [curve.arm, rate]
        if strengths:
            in_order = sorted(strengths.get(curve.arm, ()))
            cells.append(" to ".join(f"{value:g}" for value in dict.fromkeys((*in_order[:1], *in_order[-1:]))))
        cells.append(f"{len(runs)}/{seeds}")
        for outcome in outcomes:
            cells.append(mean_over_seeds(runs, outcome))
            if base is not None:
                gain = gain_of(evaluations_of(runs), base, OUTCOMES[outcome])
                cells.append(gain_in_words(gain, OUTCOMES[outcome]))
        rows.append(cells)
    return rows


def mean_over_seeds(runs: Sequence[ComparedRun], outcome: str) -> str:
    """Return the mean of the runs' macro averages, ± its standard error over seeds; a dash if a run has none."""
    measure = OUTCOMES[outcome]
    averages = [run.average(measure) for run in runs]
    values = [measure.factor * average for average in averages if average is not None]
    if not values or len(values) < len(runs):
        return "–"
    return mean_in_words(values, digits=measure.fine)


def mean_in_words(values: Sequence[float], *, digits: int) -> str:
    """Return the mean of one number of each run, ± its standard error over seeds."""
    mean = mean_of(values)
    text = f"{mean.value:.{digits}f}"
    if mean.error is not None:
        text += f" ± {mean.error:.{digits}f}"
    return text
