"""A small run of the simulation in docs/comparing.md: equal arms are seldom told apart, and effects are found."""

import numpy as np
import pytest
from scipy import stats

from benchmarks.checks.error_rates import EQUAL, FAMILIES, PLANTED, World, study, study_family

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


@pytest.mark.parametrize("world", FAMILIES[:4], ids=lambda world: f"{world.title}-{world.seeds}-{max(world.effects)}")
def test_of_a_family_hardly_anything_false_is_said(world: World) -> None:
    """Luck alone: t and its Bonferroni interval are exact, and the margin is wide."""
    random = np.random.default_rng(1)
    said = [study_family(world, random) for _ in range(STUDIES)]
    most = stats.binom.ppf(0.999, STUDIES, 0.05)
    assert sum(one.false_difference for one in said) <= most and sum(one.missed for one in said) <= most
    assert sum(one.false_equality for one in said) <= most
    assert np.mean([one.differing if any(world.effects) else one.equal for one in said]) > 0.9
