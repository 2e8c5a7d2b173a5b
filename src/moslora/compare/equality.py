"""Are two arms equal? A difference of the margin or more is tested, in both directions.

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
"""Shares of the gain beyond which an end of `share_interval` counts as infinite."""


def p_unequal(contrast: Contrast, margin: Margin) -> float:
    """p of a difference of the margin or more: the larger of the two one-sided tests'; 1 for a share of a gain that is
    not known."""
    if not margin.of_gain:
        return contrast.effects[MACRO].distribution.beyond(margin.size / contrast.outcome.factor)
    if not contrast.base:
        return 1.0
    sides = [_side(contrast, margin.size, sign=sign) for sign in (1, -1)]
    return max(side.below(0) for side in sides)


def p_worse(contrast: Contrast, margin: Margin) -> float:
    """One-sided p of a loss of the margin or more; 1 for a share of a gain that is not known."""
    direction = contrast.outcome.direction
    if not margin.of_gain:
        distribution = contrast.effects[MACRO].distribution
        return replace(distribution, difference=direction * distribution.difference).below(
            -margin.size / contrast.outcome.factor
        )
    return _side(contrast, margin.size, sign=direction).below(0) if contrast.base else 1.0


def size_in_words(margin: Margin, outcome: Outcome) -> str:
    """``0.01 nats``, or ``20 % of the gain``."""
    return f"{100 * margin.size:g} % of the gain" if margin.of_gain else f"{margin.size:g} {outcome.unit}"


def in_words(contrast: Contrast, margin: Margin) -> str:
    """``0.01 nats``, or ``20 % of lora's gain (0.0280 nats)``."""
    outcome = contrast.outcome
    if not margin.of_gain:
        return size_in_words(margin, outcome)
    size = outcome.change(_side(contrast, 1, sign=0).difference).lstrip("+")
    return f"{100 * margin.size:g} % of {contrast.before}'s gain ({size} {outcome.unit})"


def equivalence_title(margin: Margin) -> str:
    """What `equivalence_interval_in_words` is."""
    return "% of the gain, 90 % interval" if margin.of_gain else "90 % interval"


def equivalence_interval_in_words(contrast: Contrast, margin: Margin) -> str:
    """The interval of confidence 1 − 2 · `LEVEL`, which is within the margin where the arms are equal: of D, or of
    D / G in percent; empty if the gain is not shown."""
    if not margin.of_gain:
        return contrast.outcome.range(contrast.effects[MACRO].equivalence_interval)
    low, high = share_interval(contrast)
    if not math.isfinite(high - low):
        return ""
    return f"{100 * low:+.0f} to {100 * high:+.0f}"


def share_interval(contrast: Contrast) -> tuple[float, float]:
    """The shares r = D / G that neither of the two one-sided tests of `LEVEL` rejects: Fieller's interval, of
    confidence 1 − 2 · `LEVEL`. Within ± m the arms are equal. Infinite where the gain itself is not shown."""
    gained = _side(contrast, 1, sign=0)
    if gained.below(0) > LEVEL:
        return -math.inf, math.inf
    share = contrast.effects[MACRO].difference / gained.difference
    return -_end(contrast, -share, sign=1), _end(contrast, share, sign=-1)


def _end(contrast: Contrast, share: float, *, sign: int) -> float:
    """The smallest r beyond ``share`` with p = `LEVEL` of r G + ``sign`` · D ≤ 0."""

    def excess(more: float) -> float:
        return _side(contrast, share + more, sign=sign).below(0) - LEVEL

    if excess(MOST) > 0:
        return math.inf
    return share + float(brentq(excess, 0, MOST, xtol=1e-5))


def _side(contrast: Contrast, share: float, *, sign: int) -> DifferenceDistribution:
    """The distribution of ``share`` · G + ``sign`` · D."""
    outcome = contrast.outcome
    # Training is to lower it; of texts it is to leave it: what an arm forgot is a rise.
    gain = -share if outcome.direction < 0 and not outcome.of_texts else share
    sides = {}
    for task, (before, after) in contrast.y.items():
        sides[task] = (sign * before - gain * (before - contrast.base[task]), sign * after)
    return contrast.effects_of(sides)[MACRO].distribution
