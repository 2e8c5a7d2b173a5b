"""The distribution of a difference against Student's t, Fisher and Yates' table, an integral, and draws."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import integrate, stats

from moslora.compare.distribution import DifferenceDistribution, VarianceEstimate

LEVELS = (0.1, 0.05, 0.05 / 11)
NOTHING = VarianceEstimate(0.0, 0.0)


def above(distribution, value):
    """Return P(δ ≥ value), by the mirrored distribution."""
    return replace(distribution, difference=-distribution.difference).below(-value)


@pytest.mark.parametrize("degrees", [1, 2, 3, 5, 7, 40.5, 800.0])
def test_one_part_is_scipys_t(degrees):
    expected = stats.t(degrees, 0.3, 2)
    one = VarianceEstimate(4.0, degrees)
    for distribution in (
        DifferenceDistribution(0.3, one, NOTHING),
        DifferenceDistribution(0.3, NOTHING, one),
        DifferenceDistribution(0.3, one, NOTHING, interaction=1.0),
    ):
        for level in LEVELS:
            precise = 1e-3 if degrees == 1 else 1e-6
            assert distribution.interval(level) == pytest.approx(expected.interval(1 - level), rel=precise)
        for value in (-4.0, 0.0, 0.3, 1.0, 5.0):
            assert above(distribution, value) == pytest.approx(expected.sf(value), rel=1e-7)
            assert distribution.below(value) == pytest.approx(expected.cdf(value), rel=1e-7)
            assert distribution.p(value) == pytest.approx(2 * min(expected.cdf(value), expected.sf(value)), rel=1e-7)


@pytest.mark.parametrize(
    ("degrees", "points"),
    [
        (6, (2.447, 2.440, 2.435, 2.435, 2.435, 2.440, 2.447)),
        (8, (2.447, 2.430, 2.398, 2.364, 2.331, 2.310, 2.306)),
        (12, (2.447, 2.423, 2.367, 2.301, 2.239, 2.193, 2.179)),
        (24, (2.447, 2.418, 2.342, 2.247, 2.156, 2.088, 2.064)),
        (1e7, (2.447, 2.413, 2.322, 2.201, 2.082, 1.993, 1.960)),
    ],
)
def test_distribution_is_fisher_and_yates_table(degrees, points):
    """5 % points at θ = 0°, 15° … 90°, of 6 degrees and others: Sukhatme's in table VI of their Statistical Tables."""
    for angle, point in zip(np.radians(range(0, 91, 15)), points, strict=True):
        distribution = DifferenceDistribution(
            0.0, VarianceEstimate(math.cos(angle) ** 2, 6), VarianceEstimate(math.sin(angle) ** 2, degrees)
        )
        assert distribution.interval(0.05)[1] == pytest.approx(point, abs=0.0011)


@pytest.mark.parametrize("seeds", [2, 3, 4, 8])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_without_interaction_distribution_is_an_integral_over_t(seeds, share):
    distribution = DifferenceDistribution(0.0, VarianceEstimate(share, seeds - 1), VarianceEstimate(1 - share, 300.5))
    tail = stats.t(300.5, scale=math.sqrt(1 - share)).sf

    def by_integral(x):
        """P(√V₁ T₁ + √V₂ T₂ ≥ x), over T₁."""
        density = stats.t(seeds - 1).pdf
        return integrate.quad(lambda t: density(t) * tail(x - math.sqrt(share) * t), -np.inf, np.inf, limit=200)[0]

    for x in (0.5, 2.0, 5.0):
        assert above(distribution, x) == pytest.approx(by_integral(x), rel=1e-4 if seeds == 2 else 1e-6)
    for level in LEVELS:
        low, high = distribution.interval(level)
        assert -low == pytest.approx(high) and by_integral(high) == pytest.approx(level / 2, rel=1e-3)


@pytest.mark.parametrize("interaction", [0.3, 0.9, 1.4, 5.0])
@pytest.mark.parametrize("seeds", [3, 4, 6])
def test_distribution_is_that_of_draws(seeds, interaction):
    draw = np.random.default_rng(seeds)
    count = 400_000
    of_questions = 1.5 * 20 / draw.chisquare(20, count)
    of_seeds = 1.0 * (seeds - 1) / draw.chisquare(seeds - 1, count)
    rest = np.maximum(0, of_seeds - min(interaction, 1.5))
    drawn = 0.7 + np.sqrt(of_questions + rest) * draw.standard_normal(count)
    distribution = DifferenceDistribution(0.7, VarianceEstimate(1.0, seeds - 1), VarianceEstimate(1.5, 20), interaction)
    for value in (0.9, 3.0, 5.0):
        p = above(distribution, value)
        low, high = stats.binom.ppf([0.001, 0.999], count, p) / count
        assert low <= (drawn >= value).mean() <= high


def test_seeds_that_agree_by_chance_make_no_interval_narrower():
    questions = VarianceEstimate(2.0, 500)
    alone = DifferenceDistribution(0.3, NOTHING, questions)
    for of_seeds in (1e-9, 0.01, 0.3):
        distribution = DifferenceDistribution(0.3, VarianceEstimate(of_seeds, 3), questions, interaction=1.9)
        assert distribution.standard_error == pytest.approx(alone.standard_error)
        assert distribution.p() >= alone.p() * (1 - 1e-9)
        for level in LEVELS:
            assert distribution.interval(level)[1] >= alone.interval(level)[1] - 1e-9


def test_difference_without_error_is_certain():
    distribution = DifferenceDistribution(0.2, VarianceEstimate(0.0, 3), VarianceEstimate(0.0, 10))
    assert distribution.interval(0.05) == (0.2, 0.2) and distribution.p() == 0 and distribution.p(0.2) == 1
    assert (
        distribution.beyond(0.3) == 0
        and distribution.beyond(0.1) == 1
        and distribution.detectable(level=0.05, power=0.8) == 0
    )
