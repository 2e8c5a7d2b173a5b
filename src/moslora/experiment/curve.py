"""The learning rates of an arm, by their validation losses: which are still in question, and which one is chosen."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean

from scipy.special import stdtrit

from moslora.compare.index import RateNoise

CLOSE = 0.95
"""One-sided level beyond which a rate is worse than the best by more than noise."""


@dataclass(frozen=True)
class Standing:
    """Where the search of an arm stands.

    Attributes:
        rates: those that are still in question, the best first; empty if no loss was finite.
        seeds: the number of seeds that each of them has, or has to have next.
        complete: whether the search is over; the first rate is then the arm's.
        stop_at: the share of the steps that these runs have to reach next; ``None`` for all.
    """

    rates: Sequence[float]
    seeds: int
    complete: bool
    stop_at: float | None = None


@dataclass(frozen=True)
class Curve:
    """An arm's validation losses L by learning rate. The rate with the lowest mean over the search's seeds is chosen;
    runs that are scored have other seeds.

    Where the search may take more seeds, they go one by one to the rates r that are close to the best one b:

        mean_s (L_rs − L_bs) ≤ t · σ / √S

    S: their seeds so far. σ: the noise of such a difference under one seed (`noise_of`). t: the quantile `CLOSE` of
    Student's t with the noise's degrees of freedom. This is a race of candidates over paired blocks, the seeds
    (Birattari et al. 2002, "A racing algorithm for configuring metaheuristics"). It ends when one rate is left, or with
    the last seed.

    Where the search halves over steps, the better half of the rates goes on after each share of the steps (successive
    halving: Jamieson and Talwalkar 2016, arXiv 1502.07943); one that is left then is chosen.

    Attributes:
        arm: its name in the experiment.
        seeds: number of seeds of every rate.
        losses: learning rate -> validation losses of the seeds that are done, in the order of the seeds; `math.inf` for
            one that is not finite.
        more: number of seeds beyond these, for close rates.
        noise: ``None`` as long as it is not known.
        early: share of the steps -> learning rate -> losses there under the seeds of every rate, as far as they are
            known.
    """

    arm: str
    seeds: int
    losses: Mapping[float, list[float]]
    more: int = 0
    noise: RateNoise | None = None
    early: Mapping[float, Mapping[float, list[float]]] = field(default_factory=dict)

    @cached_property
    def standing(self) -> Standing:
        """The search so far, round by round."""
        halved = self._halved
        if halved.stop_at is not None or halved.complete:
            return halved
        rates = halved.rates
        for count in range(self.seeds, self.seeds + self.more + 1):
            if any(len(self.losses[rate]) < count for rate in rates):
                return Standing(rates, count, complete=False)
            rates = ranked({rate: self.losses[rate][:count] for rate in rates})
            if self.more and self.noise is not None:
                rates = self._close(rates, count, self.noise)
            elif self.more and len(rates) > 1:
                return Standing(rates, count, complete=False)
            if len(rates) <= 1:
                break
        return Standing(rates, count, complete=True)

    @cached_property
    def _halved(self) -> Standing:
        """Where the search stands when the rates have been halved as far as their losses are known."""
        rates = list(self.losses)
        for share, losses in self.early.items():
            if any(len(losses[rate]) < self.seeds for rate in rates):
                return Standing(rates, self.seeds, complete=False, stop_at=share)
            half = math.ceil(len(rates) / 2)
            rates = ranked({rate: losses[rate] for rate in rates})[:half]
            if len(rates) <= 1:
                return Standing(rates, self.seeds, complete=True)
        return Standing(rates, self.seeds, complete=False)

    def _close(self, rates: Sequence[float], count: int, noise: RateNoise) -> list[float]:
        """Those that are close to the first of these ``rates``, which is the best."""
        widest = float(stdtrit(noise.degrees, CLOSE)) * noise.deviation / math.sqrt(count)
        found = []
        for rate in rates:
            gap = fmean(differences(self.losses[rate], self.losses[rates[0]], count))
            if gap <= widest:
                found.append(rate)
        return found

    @property
    def best(self) -> float | None:
        """The chosen rate; ``None`` while runs are missing, or if no loss was finite. A lone rate needs no run."""
        if len(self.losses) == 1:
            return next(iter(self.losses))
        if self.complete and self.standing.rates:
            return self.standing.rates[0]
        return None

    @property
    def complete(self) -> bool:
        """Whether every run of the search is done."""
        return self.standing.complete

    @property
    def has_first_seeds(self) -> bool:
        """Whether every rate that halving has left has the seeds of every rate."""
        if self._halved.stop_at is not None:
            return False
        return self._halved.complete or all(len(self.losses[rate]) >= self.seeds for rate in self._halved.rates)

    @property
    def first_two(self) -> list[float]:
        """The differences by seed of the best two of these rates under these seeds, if `has_first_seeds`; empty where
        fewer than two are finite."""
        if self._halved.complete:
            return []
        rates = ranked({rate: self.losses[rate][: self.seeds] for rate in self._halved.rates})
        if len(rates) < 2:
            return []
        return differences(self.losses[rates[1]], self.losses[rates[0]], self.seeds)

    @property
    def remark(self) -> str:
        """A note if no rate was good, or if the best is the lowest or the highest: the optimum may lie beyond."""
        rates = sorted(self.losses)
        best = self.best
        if best is None:
            if self.complete:
                return f"{self.arm}: no learning rate had a finite validation loss, so no run is scored; add lower ones"
            return ""
        if len(rates) == 1 or best not in (rates[0], rates[-1]):
            return ""
        side = "highest"
        next_to_it = rates[-2]
        if best == rates[0]:
            side = "lowest"
            next_to_it = rates[1]
        beyond = best**2 / next_to_it  # as far from the best, as a factor, as its neighbour
        return f"{self.arm}: {best:g} is the {side} learning rate tried; one beyond it may be better: add {beyond:.2g}"


def ranked(losses: Mapping[float, Sequence[float]]) -> list[float]:
    """The rates with finite losses, by their mean; the first of equals is first."""
    means = {rate: fmean(of_rate) for rate, of_rate in losses.items()}
    finite = [rate for rate, mean in means.items() if math.isfinite(mean)]
    return sorted(finite, key=means.__getitem__)


def differences(losses: Sequence[float], best: Sequence[float], count: int) -> list[float]:
    """By seed, of the first ``count`` seeds."""
    pairs = zip(losses[:count], best[:count], strict=True)
    return [loss - lowest for loss, lowest in pairs]


def noise_of(curves: Iterable[Curve]) -> RateNoise | None:
    """The noise of a difference of two rates under one seed, pooled over the arms a, so that two seeds suffice:

        σ² = Σ_a Σ_s (d_as − d̄_a)² / Σ_a (S − 1)      d_as = L of the second-best rate − L of the best, by seed

    Of the best two rates alone: one that is far too high has more noise, and is not in question. ``None`` without any.
    """
    squares = 0.0
    degrees = 0
    for curve in curves:
        found = curve.first_two
        if not found:
            continue
        mean = fmean(found)
        squares += sum((difference - mean) ** 2 for difference in found)
        degrees += len(found) - 1
    if not degrees:
        return None
    return RateNoise(math.sqrt(squares / degrees), degrees)
