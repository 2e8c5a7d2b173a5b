"""The learning rates of an arm, and the one that their validation losses choose."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True)
class Curve:
    """An arm's validation losses by learning rate. The rate with the lowest mean over the search's seeds is chosen;
    runs that are scored have other seeds.

    Attributes:
        arm: its name in the experiment.
        seeds: number of seeds of every rate.
        losses: learning rate -> validation losses of the seeds that are done; `math.inf` for one that is not finite.
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
        """The chosen rate; ``None`` while runs are missing, or if no loss was finite. A lone rate needs no run."""
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
        """A note if no rate was good, or if the best is the lowest or the highest: the optimum may lie beyond."""
        rates = sorted(self.losses)
        best = self.best
        if best is None and self.complete:
            return f"{self.arm}: no learning rate had a finite validation loss, so no run is scored; add lower ones"
        if best is None or len(rates) == 1 or best not in (rates[0], rates[-1]):
            return ""
        side, next_to_it = ("lowest", rates[1]) if best == rates[0] else ("highest", rates[-2])
        beyond = best**2 / next_to_it  # as far from the best, as a factor, as its neighbour
        return (
            f"{self.arm}: {best:g} is the {side} learning rate tried (--any-rate scores the arm so); one beyond it may"
            f" be better: add {beyond:.2g}"
        )
