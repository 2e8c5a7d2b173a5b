"""A small run of the simulation in docs/law.md: equal arms are seldom told apart, whatever their luck."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from benchmarks.checks.error_rates import found_in
from benchmarks.checks.worlds import World, in_clusters, lognormal, normal, student, thresholded, with_bad_seeds
from moslora.compare.statistics import LEVEL

STUDIES = 50
ARMS = np.array([0.0, 0.2, 3.0, 1.0])
MIXED = World("mixed", luck=0.1 * ARMS, taste=ARMS, noise=ARMS, questions=80, binary=False)
"""Seeds and questions matter alike, and the arms differ in how much they vary."""


WORLDS = [
    MIXED,
    replace(MIXED, title="bad seeds", draw_luck=with_bad_seeds),
    replace(MIXED, title="right or wrong", luck=0.05 * ARMS, binary=True),
    in_clusters(MIXED)[0],
    in_clusters(MIXED)[2],
    in_clusters(replace(MIXED, title="right or wrong", luck=0.05 * ARMS, binary=True))[2],
]


@pytest.mark.parametrize("seeds", [1, 4])
@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.title)
def test_equal_arms_are_seldom_told_apart(world, seeds):
    said = found_in(replace(world, seeds=seeds), STUDIES)
    most = 100 / STUDIES * stats.binom.ppf(0.999, STUDIES, LEVEL)
    assert said.misses <= most and said.joint_misses <= most
    assert 0.6 < said.width < 3 and said.width <= 1.1 * said.joint_width


def test_clusters_that_are_not_named_are_missed():
    _, unknown, _ = in_clusters(replace(MIXED, luck=0 * ARMS, noise=0 * ARMS))
    said = found_in(replace(unknown, seeds=1), STUDIES)
    assert said.joint_misses > 100 / STUDIES * stats.binom.ppf(0.999, STUDIES, LEVEL)


@pytest.mark.parametrize("draw", [normal, student, lognormal, with_bad_seeds])
def test_what_is_drawn_has_mean_0_and_variance_1(draw):
    numbers = draw(np.random.default_rng(0), (1_000_000,))
    assert numbers.mean() == pytest.approx(0, abs=0.01)
    assert numbers.var() == pytest.approx(1, rel=0.1)


def test_right_and_wrong_answers_vary_as_much_as_they_should():
    """By taste, noise and luck: of two arms under two seeds, over many questions."""
    one = np.array([0.0, 1.0])
    like = replace(MIXED, luck=0.01 * one, taste=0.2 * one, noise=0.3 * one, questions=200_000, seeds=2, binary=True)
    without_luck = replace(thresholded(like), luck=0 * one)
    (d,), _ = without_luck.study(np.random.default_rng(0))
    of_taste = (d[0] * d[1]).mean()
    assert of_taste == pytest.approx(0.2**2, rel=0.05)
    assert (d**2).mean() - of_taste == pytest.approx(0.3**2, rel=0.05)
    lucky = thresholded(like)
    shift = lucky.luck[1] / np.sqrt(1 + lucky.taste[1] ** 2 + lucky.noise[1] ** 2)
    assert stats.norm.cdf(shift) - 0.5 == pytest.approx(0.01, rel=0.01)
