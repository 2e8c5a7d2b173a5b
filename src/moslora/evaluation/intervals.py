"""Means and shares with what is known of them."""

import math
from collections.abc import Sequence

from scipy import special  # not scipy.stats, which takes a tenth of a command's start


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """x̄ = Σ x / n and its standard error √(Σ (x − x̄)² / (n − 1) / n), ``None`` below two values."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (n - 1) / n)


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's score interval of a share, 95 %: the shares π with |p − π| ≤ 1.96 √(π (1 − π) / n), p = right / n.

    Unlike p ± 1.96 standard errors it holds for few questions too: 4 of 4 give 51 to 100 %.
    """
    z = float(special.ndtri(0.975))
    p = right / n
    whole = 2 * (n + z**2)
    center = (2 * n * p + z**2) / whole
    half = z / whole * math.sqrt(4 * n * p * (1 - p) + z**2)
    low = center - half
    high = center + half
    if right == 0:
        low = 0.0
    if right == n:
        high = 1.0
    return low, high
