"""Means and shares with their standard errors and intervals.

Questions that share a text are not independent. They are a cluster c, and it is clusters that are drawn at random: the
standard error of a mean over n questions in C clusters is

    se² = C / (C − 1) · Σ_c (Σ_{i in c} (x_i − x̄))² / n²

(Miller 2024, arXiv 2411.00640, section 2.2, which has no factor C / (C − 1)). Where each question is its own cluster,
it is the sample standard deviation / √n.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import special  # not scipy.stats, which takes a tenth of a command's start

FEWEST_FOR_PERCENT = 10
"""Fewest questions for which a share is given in percent."""

Interval = tuple[float, float]
"""Lower and upper end."""


@dataclass(frozen=True)
class Mean:
    """Mean over questions, texts or runs.

    Attributes:
        value: x̄.
        error: its standard error; ``None`` below two clusters.
        n: number of questions.
        clusters: C; n where each question is its own.
    """

    value: float
    error: float | None
    n: int
    clusters: int

    @property
    def effective_n(self) -> float:
        """Number of independent questions that would give a share p the same standard error: n* = 1 + p (1 − p) / se²,
        at most n (Korn and Graubard 1998, Survey Methodology 24, pages 193–201; n / n* is Kish's design effect).

        Where all answers are right, or none is, the error says nothing, and n* is the number of clusters.
        """
        if self.clusters == self.n:
            return self.n
        variance = self.value * (1 - self.value)
        if self.error is None or variance == 0:
            return self.clusters
        if self.error == 0:
            return self.n
        return min(self.n, 1 + variance / self.error**2)

    @property
    def interval_of_share(self) -> Interval:
        """Wilson's interval of a share over `effective_n` questions."""
        return wilson(self.value, self.effective_n)


def mean_of(values: Sequence[float], clusters: Sequence[str] = ()) -> Mean:
    """Mean of ``values`` with the cluster of each; without ``clusters`` each value is its own."""
    n = len(values)
    mean = math.fsum(values) / n
    deviations: dict[object, list[float]] = defaultdict(list)
    for x, cluster in zip(values, clusters or range(n), strict=True):
        deviations[cluster].append(x - mean)
    squares = math.fsum(math.fsum(of_cluster) ** 2 for of_cluster in deviations.values())
    count = len(deviations)
    error = None
    if count == n > 1:
        error = math.sqrt(squares / (n - 1) / n)
    elif count > 1:
        error = math.sqrt(squares * count / (count - 1)) / n
    return Mean(mean, error, n, count)


def wilson(share: float, n: float) -> Interval:
    """Wilson's score interval of a share p, 95 %: the shares π with |p − π| ≤ 1.96 √(π (1 − π) / n).

    Unlike p ± 1.96 standard errors it holds for few questions too: 4 of 4 give 51 to 100 %.
    """
    z = float(special.ndtri(0.975))
    whole = 2 * (n + z**2)
    center = (2 * n * share + z**2) / whole
    half = z / whole * math.sqrt(4 * n * share * (1 - share) + z**2)
    low = 0.0 if share == 0 else center - half
    high = 1.0 if share == 1 else center + half
    return low, high


NO_VALUE = "–"
"""Cell of a table without a number."""


def percent(share: float | None) -> str:
    """Text of a share in percent: 0.6615 as ``66.2``."""
    return NO_VALUE if share is None else f"{100 * share:.1f}"


def percent_range(interval: Interval | None) -> str:
    """Text of an interval of a share in percent: (0.6198, 0.7003) as ``62.0 to 70.0``."""
    return NO_VALUE if interval is None else " to ".join(map(percent, interval))
