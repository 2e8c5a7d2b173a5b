"""The sign flips against scipy and statsmodels."""

import numpy as np
import pytest
from scipy import stats

from moslora.compare.flips import SAMPLED, sign_flip, smallest_p


@pytest.mark.parametrize("count", [2, 6, 11])
def test_sign_flips_are_scipys_permutation_test(count: int) -> None:
    x = np.random.default_rng(count).normal(0.5, 1, count)
    expected = stats.permutation_test((x,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
    assert sign_flip(x) == pytest.approx(expected)
    assert sign_flip(np.append(x, 0.0)) == pytest.approx(expected)
    assert sign_flip(abs(x)) == smallest_p(count)


def test_sign_flips_of_many_values_are_sampled() -> None:
    x = np.random.default_rng(3).normal(0.15, 1, 200)
    sums = stats.norm.sf(abs(x.sum()) / np.sqrt((x**2).sum())) * 2  # the flips' normal limit
    assert sign_flip(x) == pytest.approx(sums, abs=0.01)
    assert sign_flip(x + 5) == 1 / (SAMPLED + 1), "never zero"


def test_of_right_and_wrong_answers_they_are_mcnemars_exact_test() -> None:
    contingency = pytest.importorskip("statsmodels.stats.contingency_tables")
    d = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], 90, p=[0.1, 0.7, 0.2])
    table = [[40, (d > 0).sum()], [(d < 0).sum(), 9]]
    expected = contingency.mcnemar(table, exact=True).pvalue
    assert sign_flip(d) == sign_flip(d / 90) == pytest.approx(expected)
    assert sign_flip(np.zeros(5)) == 1


def test_six_seeds_of_equal_arms_are_told_apart_as_often_as_they_can_be() -> None:
    """2 of 64 sign patterns: 1/32, with the binomial's bounds."""
    draws = np.random.default_rng(0).normal(0, 1, (4000, 6))
    found = sum(sign_flip(x) <= 0.05 for x in draws)
    low, high = stats.binom.ppf([0.001, 0.999], 4000, 2 / 64)
    assert low <= found <= high
