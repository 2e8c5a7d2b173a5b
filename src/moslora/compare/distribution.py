"""Distribution of a true difference δ, given its estimate D: a Behrens-Fisher distribution.

    δ − D   is normal with the variance   V_q ν_q / χ²_q + max(0, V_s ν_s / χ²_s − V_i)   for given χ²_q and χ²_s

V_s is the variance of D by other seeds, estimated with ν_s degrees of freedom, and V_q that by other questions, with
ν_q. V_i, of what varies by seed and question together, is contained in both. The distribution is the average over the
χ². Its variance is never below that of questions, which is known best: a few seeds that agree by chance make no
interval narrower.

If only seeds vary it is Student's t of ν_s degrees, if only questions vary that of ν_q, and without V_i the
distribution of √V_s · T_s + √V_q · T_q: Behrens 1929; Fisher 1935, doi 10.1111/j.1469-1809.1935.tb02120.x.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import gammaincinv, ndtr

Floats = NDArray[np.float64]

NODES = np.linspace(-8, 8, 65)
"""Standard normal numbers z. The quantiles of a χ² at Φ(z) also resolve its tails."""

MANY = 30
"""Degrees of freedom from which on every fourth node is enough."""


@dataclass(frozen=True)
class VarianceEstimate:
    """An estimated variance.

    Attributes:
        variance: estimate V.
        degrees: its degrees of freedom, ν.
    """

    variance: float
    degrees: float

    @property
    def plausible(self) -> tuple[Floats, Floats]:
        """Possible true variances V ν / χ², and their weights, shapes ``(nodes,)``.

        They are the nodes of a trapezoidal rule over a normal z, with χ² at the quantile Φ(z); its error is rounding.
        """
        if not self.variance:
            return np.zeros(1), np.ones(1)
        nodes = NODES if self.degrees < MANY else NODES[::4]
        density = np.exp(-(nodes**2) / 2)
        return self.variance * self.degrees / (2 * gammaincinv(self.degrees / 2, ndtr(nodes))), density / density.sum()


@dataclass(frozen=True)
class DifferenceDistribution:
    """Distribution of a true difference.

    Attributes:
        difference: estimate D.
        seeds: V_s.
        questions: V_q.
        interaction: estimate of V_i; where it is larger than V_q, the distribution takes V_q in its place.
        most: largest possible |δ|, which is 1 for a difference of shares.
    """

    difference: float
    seeds: VarianceEstimate
    questions: VarianceEstimate
    interaction: float = 0.0
    most: float = math.inf

    @property
    def standard_error(self) -> float:
        """Standard error of D: √(V_q + max(0, V_s − min(V_i, V_q)))."""
        return math.sqrt(self.questions.variance + max(0.0, self.seeds.variance - self._in_both))

    def interval(self, level: float) -> tuple[float, float]:
        """Return the interval of confidence 1 − ``level``, clipped to ± ``most``."""
        half = self._distance(level / 2)
        return max(-self.most, self.difference - half), min(self.most, self.difference + half)

    def p(self, at: float = 0.0) -> float:
        """Return the two-sided p of the hypothesis that the true difference is ``at``."""
        return 2 * self._tail(abs(self.difference - at))

    def below(self, value: float) -> float:
        """Return p of the null hypothesis that the true difference is at most ``value``; a small p shows it larger."""
        return self._tail(self.difference - value)

    def beyond(self, margin: float) -> float:
        """Return p of the hypothesis that the difference is ``margin`` or more in either direction, by two one-sided
        tests; a small p shows equality."""
        return self._tail(margin - abs(self.difference))

    def detectable(self, *, level: float, power: float) -> float:
        """Return the true difference that a two-sided test of this level finds with this power, with the same standard
        errors.

        It is the half width of the interval plus the distance by which the estimate D falls below the true difference
        with probability 1 − ``power``.
        """
        return self._distance(level / 2) + self._distance(1 - power)

    def _tail(self, distance: float) -> float:
        """Return P(error ≥ ``distance``)."""
        if not self.standard_error:
            return float(np.heaviside(-distance, 0.5))
        deviations, weights = self._mixture
        return float(weights @ ndtr(-distance / deviations))

    def _distance(self, tail: float) -> float:
        """Return the distance with P(error ≥ distance) = ``tail``, which is at most a half."""
        if not self.standard_error:
            return 0.0
        far = self.standard_error
        while self._tail(far) > tail:
            far *= 2
        root: float = brentq(lambda distance: self._tail(distance) - tail, 0, far, xtol=1e-12 * far)
        return root

    @property
    def _in_both(self) -> float:
        """Variance of what varies by seed and question together. V_s and V_q both contain it; it counts once."""
        return min(self.interaction, self.questions.variance)

    @cached_property
    def _mixture(self) -> tuple[Floats, Floats]:
        """Standard deviations of the normal distributions in the mixture, and their weights, shapes ``(nodes,)``."""
        of_seeds, weights = self.seeds.plausible
        of_questions, other_weights = self.questions.plausible
        variances = np.add.outer(of_questions, np.maximum(0, of_seeds - self._in_both))
        return np.sqrt(variances).ravel(), np.multiply.outer(other_weights, weights).ravel()
