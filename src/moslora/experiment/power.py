"""What an experiment would find: the smallest difference, and the smallest margin of an equality.

The difference D of two arms over S seeds and n questions of each set has the variance

    σ²_s / S + σ²_q / n + σ²_b / (S n)      of other seeds, of other questions, of both together

The three components come from runs that are there, a pilot. `moslora compare` does not know them: it estimates what
varies by seed from S seeds, so its interval is wide under one draw of the runs and narrow under another. With h the
half width of the interval and c the distance that a one-sided test asks for, both by the law of `moslora.compare.law`,

    P(a difference δ is found) = E[Φ((δ − h) / σ_D)]      P(equality within ±m is found) = E[2 Φ((m − c) / σ_D) − 1]

The expectations are over that estimate, σ̂² ~ σ² χ²_{S−1} / (S − 1), which is independent of D where errors are normal.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.optimize import brentq
from scipy.special import gammaincinv, ndtr

from moslora.compare.law import Law, Part
from moslora.compare.statistics import POWER

NODES = np.linspace(-6, 6, 25)
"""Standard normal numbers z; Φ(z) is the share at which a χ² is read, and its law's widths are computed."""

BETWEEN = np.linspace(-6, 6, 1201)
"""Where these widths are interpolated, as with few seeds the power is nearly a step."""

WEIGHTS = np.exp(-(BETWEEN**2) / 2) / np.exp(-(BETWEEN**2) / 2).sum()

MOST_SEEDS = 200
"""More are not looked for."""


@dataclass(frozen=True)
class Components:
    """Variances of a difference D of two arms, with one seed and so many questions of each set.

    Attributes:
        seed: σ²_s.
        question: σ²_q / n.
        both: σ²_b / n.
        questions: n of the pilot.
        degrees: of the questions' variance there.
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
            seed=max(0.0, law.seeds.variance - law.interaction) * seeds,
            question=max(0.0, law.questions.variance - law.interaction),
            both=law.interaction * seeds,
            questions=questions,
            degrees=law.questions.degrees,
        )

    def design(self, seeds: int, questions: float) -> "Design":
        """S seeds and n questions of each set."""
        share = self.questions / questions
        return Design(
            seeds=seeds,
            seed=self.seed / seeds,
            question=self.question * share,
            both=self.both * share / seeds,
            degrees=self.degrees / share,
        )


@dataclass(frozen=True)
class Design:
    """S seeds and so many questions, by what D varies there.

    Attributes:
        seeds: S, at least 2.
        seed: variance of D by other seeds alone.
        question: by other questions alone.
        both: by both together.
        degrees: with which the variance by questions is known.
    """

    seeds: int
    seed: float
    question: float
    both: float
    degrees: float

    @property
    def deviation(self) -> float:
        """σ_D."""
        return math.sqrt(self.seed + self.question + self.both)

    @cached_property
    def _laws(self) -> list[Law]:
        """The laws that may be found, one for each node."""
        degrees = self.seeds - 1
        estimates = (self.seed + self.both) * 2 * gammaincinv(degrees / 2, ndtr(NODES)) / degrees
        of_questions = Part(self.question + self.both, self.degrees)
        return [Law(0.0, Part(float(estimate), degrees), of_questions, self.both) for estimate in estimates]

    def _half_widths(self, level: float) -> NDArray[np.float64]:
        """Half the width of the interval of this two-sided level, at `BETWEEN`."""
        at_nodes = np.array([law.interval(level)[1] for law in self._laws])
        between: NDArray[np.float64] = CubicSpline(NODES, at_nodes)(BETWEEN)
        return between

    def smallest_difference(self, level: float) -> float:
        """The true difference that a two-sided test of this level finds with `POWER`."""
        half_widths = self._half_widths(level)

        def power(difference: float) -> float:
            return float(WEIGHTS @ ndtr((difference - half_widths) / self.deviation))

        return self._with_power(power)

    def smallest_margin(self, level: float) -> float:
        """The margin within which equality is found with `POWER`, by one-sided tests of this level, if the arms are
        equal."""
        distances = self._half_widths(2 * level)

        def power(margin: float) -> float:
            inside = 2 * ndtr((margin - distances) / self.deviation) - 1
            return float(WEIGHTS @ np.maximum(inside, 0))

        return self._with_power(power)

    def _with_power(self, power: Callable[[float], float]) -> float:
        """The value at which a rising ``power`` reaches `POWER`."""
        high = self.deviation
        if not high:
            return 0.0
        while power(high) < POWER:
            high *= 2
        found: float = brentq(lambda value: power(value) - POWER, 0, high, xtol=1e-4 * high)
        return found


def seeds_for_margin(components: Components, *, margin: float, questions: float, level: float) -> int | None:
    """The smallest number of seeds that find equality within ``margin``; ``None`` if `MOST_SEEDS` do not."""

    def is_enough(seeds: int) -> bool:
        return components.design(seeds, questions).smallest_margin(level) <= margin

    if not is_enough(MOST_SEEDS):
        return None
    too_few = 1
    enough = MOST_SEEDS
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if is_enough(middle):
            enough = middle
        else:
            too_few = middle
    return enough


def mean_of(found: Sequence[Components]) -> Components:
    """The mean of the components of several contrasts with the same questions."""
    return Components(
        seed=float(np.mean([one.seed for one in found])),
        question=float(np.mean([one.question for one in found])),
        both=float(np.mean([one.both for one in found])),
        questions=found[0].questions,
        degrees=found[0].degrees,
    )
