"""What is known of a true difference that was looked at several times, while its runs were made.

    p = min_j p_j / w_j     p_j by the law of look j, w_j the share of the level that it spends, Σ_j w_j ≤ 1

If δ is the hypothesis, P(p ≤ α) ≤ Σ_j P(p_j ≤ α w_j) ≤ α, however the looks depend on each other, and whenever the runs
end. The interval is that of the last look, at its share of the level. Spending of the level over looks: Lan and DeMets
1983, doi 10.1093/biomet/70.3.659.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moslora.compare.law import Law


@dataclass(frozen=True)
class Look:
    """One look at a difference.

    Attributes:
        law: by the runs that were there.
        share: of the level.
    """

    law: Law
    share: float


@dataclass(frozen=True)
class SequentialLaw(Law):
    """The law of the last look, whose tests and intervals hold after all.

    Attributes:
        looks: in their order; without any, nothing is known.
    """

    looks: Sequence[Look] = ()

    @classmethod
    def of(cls, law: Law, looks: Sequence[Look]) -> "SequentialLaw":
        """``law`` after these looks, of which it is the last."""
        return cls(law.difference, law.seeds, law.questions, law.interaction, looks)

    def interval(self, level: float) -> tuple[float, float]:
        """Of confidence 1 − ``level``, whatever ended the runs."""
        if not self.looks:
            return -math.inf, math.inf
        last = self.looks[-1]
        return last.law.interval(level * last.share)

    def p(self, at: float = 0.0) -> float:
        """Two-sided p of the hypothesis that the true difference is ``at``."""
        return self._smallest(lambda law: law.p(at))

    def above(self, value: float) -> float:
        """One-sided p of the hypothesis that the true difference is at least ``value``."""
        return self._smallest(lambda law: law.above(value))

    def below(self, value: float) -> float:
        """One-sided p of the hypothesis that the true difference is at most ``value``."""
        return self._smallest(lambda law: law.below(value))

    def beyond(self, margin: float) -> float:
        """p of a difference of ``margin`` or more in either direction."""
        return self._smallest(lambda law: law.beyond(margin))

    def detectable(self, *, level: float, power: float) -> float:
        """The true difference that the last look finds with this power."""
        if not self.looks:
            return math.inf
        last = self.looks[-1]
        return last.law.detectable(level=level * last.share, power=power)

    def _smallest(self, p_of: Callable[[Law], float]) -> float:
        """min_j p_j / w_j, at most 1."""
        return min([1.0, *(p_of(look.law) / look.share for look in self.looks)])
