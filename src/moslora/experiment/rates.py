"""The choice of the learning rate: per arm the lowest mean validation loss over the search's own seeds."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from moslora.experiment.file import Experiment
from moslora.experiment.one_run import is_done, run_of, validation_loss


@dataclass(frozen=True)
class Curve:
    """Validation losses of one arm by rate, a list over the seeds that have run; infinite if not finite."""

    arm: str
    seeds: int
    losses: Mapping[float, list[float]]

    @property
    def best(self) -> float | None:
        """The chosen rate; ``None`` while runs are missing, or if no loss was finite. A lone rate needs no run."""
        if len(self.losses) == 1:
            return next(iter(self.losses))
        if not self.complete:
            return None
        means = {rate: fmean(losses) for rate, losses in self.losses.items()}
        best = min(means, key=means.__getitem__)
        return best if math.isfinite(means[best]) else None

    @property
    def complete(self) -> bool:
        """Whether every run of the search is done."""
        return all(len(losses) == self.seeds for losses in self.losses.values())

    def remarks(self) -> Iterator[str]:
        """If no rate was good, or the best is the lowest or the highest: the optimum may lie beyond."""
        rates = sorted(self.losses)
        if self.complete and self.best is None:
            yield f"{self.arm}: no learning rate had a finite validation loss, so it has no scored runs; add lower ones"
        elif len(rates) > 1 and (best := self.best) in (rates[0], rates[-1]):
            side = "lowest" if best == rates[0] else "highest"
            yield f"{self.arm}: {best:g} is the {side} learning rate tried; one beyond it may be better"


def curves(experiment: Experiment, out: Path, arms: tuple[str, ...]) -> list[Curve]:
    """The search so far."""

    def losses(arm: str, rate: float) -> list[float]:
        planned = experiment.planned([(arm, rate)], scored=False)
        return [validation_loss(run_of(out, one)) for one in planned if is_done(out, one)]

    rates, seeds = experiment.file.learning_rates, len(experiment.file.rate_seeds)
    return [Curve(arm, seeds, {rate: losses(arm, rate) for rate in rates}) for arm in arms]


def rate_table(found: list[Curve]) -> list[list[str]]:
    """Arms × rates: the mean validation loss, ± half the range where there are several seeds; a * marks the choice."""
    rates = list(found[0].losses)

    def cell(curve: Curve, rate: float) -> str:
        losses = curve.losses[rate]
        if not losses:
            return "–"
        some = f" ({len(losses)} of {curve.seeds})" if len(losses) < curve.seeds else ""
        if not math.isfinite(sum(losses)):
            return f"not finite{some}"
        spread = f" ± {(max(losses) - min(losses)) / 2:.4f}" if len(losses) > 1 else ""
        return f"{fmean(losses):.4f}{spread}{some}" + " *" * (rate == curve.best)

    return [
        ["validation loss at learning rate", *(f"{rate:g}" for rate in rates)],
        *([curve.arm, *(cell(curve, rate) for rate in rates)] for curve in found),
    ]
