"""What is known of a true difference δ once D was found: Behrens and Fisher's law.

    δ = D + Σ_k √V_k · T_k      T_k independent, Student's t of ν_k degrees

Part k of the error has a variance that was estimated as V_k, with ν_k degrees of freedom. For given χ²_k the law is
normal, with the variance Σ_k V_k ν_k / χ²_k, so its tails are those of normals averaged over the χ²_k. One part gives
Student's t, and parts of many degrees a normal law.

Behrens 1929; Fisher 1935, doi 10.1111/j.1469-1809.1935.tb02120.x.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import gammaincinv, ndtr

NODES = np.linspace(-8, 8, 65)
"""Standard normal numbers z. Φ(z) is the share at which a χ² is read, so that the steps also resolve its ends."""

WEIGHTS = np.exp(-(NODES**2) / 2) / np.exp(-(NODES**2) / 2).sum()
"""Of the `NODES`: the trapezoidal rule, which is exact to rounding for smooth functions of a normal number."""


@dataclass(frozen=True)
class Part:
    """An independent part of the error of a difference.

    Attributes:
        variance: V, as it was estimated.
        degrees: ν, the degrees of freedom of this estimate.
    """

    variance: float
    degrees: float

    @property
    def variances(self) -> NDArray[np.float64]:
        """V ν / χ² at the `NODES`, shape ``(65,)``."""
        halves: NDArray[np.float64] = gammaincinv(self.degrees / 2, ndtr(NODES))  # χ² / 2
        return self.variance * self.degrees / (2 * halves)


@dataclass(frozen=True)
class Law:
    """The law of a true difference.

    Attributes:
        difference: D, as it was found.
        parts: of its error.
    """

    difference: float
    parts: Sequence[Part]

    @property
    def standard_error(self) -> float:
        """√Σ V_k."""
        return math.sqrt(sum(part.variance for part in self.parts))

    def interval(self, level: float) -> tuple[float, float]:
        """The interval that a test of this two-sided level does not reject: of confidence 1 − ``level``."""
        half = self._distance(level / 2)
        return self.difference - half, self.difference + half

    def p(self, at: float = 0.0) -> float:
        """Two-sided p of the hypothesis that the true difference is ``at``."""
        return 2 * self._tail(abs(self.difference - at))

    def above(self, value: float) -> float:
        """One-sided p of the hypothesis that the true difference is at least ``value``."""
        return self._tail(value - self.difference)

    def below(self, value: float) -> float:
        """One-sided p of the hypothesis that the true difference is at most ``value``."""
        return self._tail(self.difference - value)

    def beyond(self, margin: float) -> float:
        """p of a difference of ``margin`` or more in either direction, by two one-sided tests."""
        return max(self.above(margin), self.below(-margin))

    def detectable(self, *, level: float, power: float) -> float:
        """The true difference that a two-sided test of this level finds with this power, if the errors stay as they
        are: the half width of the interval, and the distance that D falls short by with probability 1 − ``power``."""
        return self._distance(level / 2) + self._distance(1 - power)

    def _tail(self, distance: float) -> float:
        """P(error ≥ ``distance``)."""
        if not self.standard_error:
            return _step(distance)
        deviations, weights = self._mixture
        return float(weights @ ndtr(-distance / deviations))

    def _distance(self, tail: float) -> float:
        """The distance with P(error ≥ distance) = ``tail``, at most a half."""
        if not self.standard_error:
            return 0.0
        far = self.standard_error
        while self._tail(far) > tail:
            far *= 2
        found: float = brentq(lambda distance: self._tail(distance) - tail, 0, far, xtol=1e-12 * far)
        return found

    @cached_property
    def _mixture(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Standard deviations of the normals whose average the law is, and their weights: ``(65,)``, of two parts
        ``(65²,)``."""
        variances = np.zeros(1)
        weights = np.ones(1)
        for part in self.parts:
            if part.variance:
                variances = np.add.outer(variances, part.variances).ravel()
                weights = np.multiply.outer(weights, WEIGHTS).ravel()
        return np.sqrt(variances), weights


def _step(distance: float) -> float:
    """P(error ≥ ``distance``) of an error that is always 0, a half at 0 itself."""
    if distance == 0:
        return 0.5
    return float(distance < 0)
