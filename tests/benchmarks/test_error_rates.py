"""A small run of the simulation in docs/evaluation.md: equal arms are seldom told apart, and effects are found."""

import numpy as np
import pytest
from scipy import stats

from error_rates import EQUAL, PLANTED, World, study

STUDIES = 30


def shown(world: World) -> int:
    random = np.random.default_rng(0)
    return sum(study(world, random).shown for _ in range(STUDIES))


@pytest.mark.parametrize("world", [EQUAL[0], EQUAL[2]], ids=lambda world: world.title)
def test_equal_arms_are_seldom_told_apart(world: World) -> None:
    assert shown(world) <= stats.binom.ppf(0.999, STUDIES, 0.05)


@pytest.mark.parametrize("world", [PLANTED[0], PLANTED[2]], ids=lambda world: world.title)
def test_a_planted_effect_is_found(world: World) -> None:
    assert shown(world) >= STUDIES / 2
