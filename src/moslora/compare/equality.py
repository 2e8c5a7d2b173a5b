"""Tests of whether two arms are equal, or one is not worse, within a margin: two one-sided tests.

    −m < D < m                                   m a number
    m G + D > 0  and  m G − D > 0                m a share of G, what the first arm gained over its base

G is estimated as D is, from the same questions and seeds. So both sides are contrasts of their own, of
e[s, i] = m g[s, i] ± d[s, i], and each is tested against 0 one-sided, by the distribution of any contrast
(Fieller 1954's way to a ratio; both must hold: Berger and Hsu 1996, doi 10.1214/ss/1032280304).
"""

import math
from dataclasses import replace

from scipy.optimize import brentq

from moslora.compare.contrast import Contrast
from moslora.compare.distribution import DifferenceDistribution
from moslora.compare.margin import Margin
from moslora.compare.statistics import LEVEL
from moslora.runs.outcomes import Outcome
from moslora.runs.scores import MACRO

MOST = 100.0
"""Share of the gain beyond which an end of `share_interval` counts as infinite."""


def p_unequal(contrast: Contrast, margin: Margin) -> float:
    """Return p of the hypothesis that the arms differ by the margin or more; 1 for a share of a gain that is unknown.

    The larger p of two one-sided tests.
    """
    if not margin.of_gain:
        return contrast.effects[MACRO].distribution.beyond(margin.size / contrast.outcome.factor)
    if not contrast.base:
        return 1.0
    return max(_side(contrast, margin.size, sign=sign).below(0) for sign in (1, -1))


def p_worse(contrast: Contrast, margin: Margin) -> float:
    """Return the one-sided p of the hypothesis that the second arm is worse by the margin or more; 1 if the margin is a
    share of a gain that is unknown."""
    direction = contrast.outcome.direction
    if not margin.of_gain:
        distribution = contrast.effects[MACRO].distribution
        in_direction = replace(distribution, difference=direction * distribution.difference)
        return in_direction.below(-margin.size / contrast.outcome.factor)
    return _side(contrast, margin.size, sign=direction).below(0) if contrast.base else 1.0


def size_in_words(margin: Margin, outcome: Outcome) -> str:
    """Return the size of a margin, such as ``0.01 nats`` or ``20 % of the gain``."""
    return f"{100 * margin.size:g} % of the gain" if margin.of_gain else f"{margin.size:g} {outcome.unit}"


def margin_in_words(contrast: Contrast, margin: Margin) -> str:
    """Return the margin of a contrast, such as ``0.01 nats`` or ``20 % of lora's gain (0.0280 nats)``."""
    outcome = contrast.outcome
    if not margin.of_gain:
        return size_in_words(margin, outcome)
    size = outcome.change(_side(contrast, 1, sign=0).difference).lstrip("+")
    return f"{100 * margin.size:g} % of {contrast.before}'s gain ({size} {outcome.unit})"


def equivalence_title(margin: Margin) -> str:
    """Return the title of `equivalence_interval_in_words`."""
    return "% of the gain, 90 % interval" if margin.of_gain else "90 % interval"


def equivalence_interval_in_words(contrast: Contrast, margin: Margin) -> str:
    """Return the interval of confidence 1 − 2 · `LEVEL`, of D, or of D / G in percent; empty if no gain is shown.

    Arms are equal where it is within the margin.
    """
    if not margin.of_gain:
        return contrast.outcome.range(contrast.effects[MACRO].equivalence_interval)
    low, high = share_interval(contrast)
    if not math.isfinite(high - low):
        return ""
    return f"{100 * low:+.0f} to {100 * high:+.0f}"


def share_interval(contrast: Contrast) -> tuple[float, float]:
    """Return Fieller's interval of r = D / G, the difference as a share of the first arm's gain, of confidence
    1 − 2 · `LEVEL`; infinite where no gain is shown.

    It holds the shares that neither one-sided test of `LEVEL` rejects. Arms are equal where it is within ± the margin.
    """
    gained = _side(contrast, 1, sign=0)
    if gained.below(0) > LEVEL:
        return -math.inf, math.inf
    share = contrast.effects[MACRO].difference / gained.difference
    return -_end(contrast, -share, sign=1), _end(contrast, share, sign=-1)


def _end(contrast: Contrast, share: float, *, sign: int) -> float:
    """Return an end of the interval of D / G: the smallest r above ``share`` at which the one-sided test of
    r G + ``sign`` · D ≤ 0 has p = `LEVEL`."""

    def excess(more: float) -> float:
        return _side(contrast, share + more, sign=sign).below(0) - LEVEL

    if excess(MOST) > 0:
        return math.inf
    return share + float(brentq(excess, 0, MOST, xtol=1e-5))


def _side(contrast: Contrast, share: float, *, sign: int) -> DifferenceDistribution:
    """Return the distribution of ``share`` · G + ``sign`` · D: G is the first arm's gain, D the difference."""
    outcome = contrast.outcome
    # Training should lower such an outcome, but keep that of texts, whose rise is what an arm forgot.
    gain = -share if outcome.direction < 0 and not outcome.of_texts else share
    sides = {}
    for task, (before, after) in contrast.y.items():
        sides[task] = (sign * before - gain * (before - contrast.base[task]), sign * after)
    return contrast.effects_of(sides)[MACRO].distribution
