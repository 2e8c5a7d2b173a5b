"""The statistics against scipy and statsmodels, and against draws whose truth is known."""

import numpy as np
import pytest
from scipy import stats

from moslora.compare import statistics
from moslora.compare.statistics import MACRO, MICRO, Floats, effects, family, holm, sign_flip


def flips(seed: int, n: int, lost: float = 0.1, won: float = 0.2) -> Floats:
    """Differences of right and wrong answers."""
    return np.random.default_rng(seed).choice([-1.0, 0.0, 1.0], n, p=[lost, 1 - lost - won, won])


@pytest.mark.parametrize("count", [2, 6, 11])
def test_sign_flips_are_scipys_permutation_test(count: int) -> None:
    x = np.random.default_rng(count).normal(0.5, 1, count)
    expected = stats.permutation_test((x,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
    assert sign_flip(x) == pytest.approx(expected)
    assert sign_flip(np.append(x, 0.0)) == pytest.approx(expected)


def test_sign_flips_of_many_values_are_sampled() -> None:
    x = np.random.default_rng(3).normal(0.15, 1, 200)
    sums = stats.norm.sf(abs(x.sum()) / np.sqrt((x**2).sum())) * 2  # the flips' normal limit
    assert sign_flip(x) == pytest.approx(sums, abs=0.01)
    assert sign_flip(x + 5) == 1 / (statistics.RESAMPLES + 1), "never zero"


def test_over_questions_they_are_mcnemars_exact_test() -> None:
    contingency = pytest.importorskip("statsmodels.stats.contingency_tables")
    d = flips(0, 90)
    table = [[40, (d > 0).sum()], [(d < 0).sum(), 9]]
    expected = contingency.mcnemar(table, exact=True).pvalue
    assert sign_flip(d) == sign_flip(d / 90) == pytest.approx(expected)
    assert effects({"obqa": d[None]}, binary=True)["obqa"].p == pytest.approx(expected)
    assert sign_flip(np.zeros(5)) == 1


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_statsmodels(seed: int) -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p = np.random.default_rng(seed).uniform(0, 0.2, 8).tolist()
    assert holm(p) == pytest.approx(multitest.multipletests(p, method="holm")[1])
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_the_bootstrap_is_scipys() -> None:
    tasks = {"boolq": flips(0, 60), "obqa": flips(1, 40, won=0.1)}
    found = effects({task: d[None] for task, d in tasks.items()}, binary=True)
    for task, d in tasks.items():
        padded = np.append(d, (1.0, -1.0))
        expected = stats.bootstrap((padded,), np.mean, method="percentile", rng=0)
        moved = d.mean() - padded.mean()
        assert found[task].interval == pytest.approx(np.array(expected.confidence_interval) + moved, abs=0.025)
        assert found[task].standard_error == pytest.approx(expected.standard_error, rel=0.03)
    of_tasks = [found[task].standard_error for task in tasks]
    macro, micro = found[MACRO], found[MICRO]
    assert macro.difference == pytest.approx(np.mean([d.mean() for d in tasks.values()]))
    assert macro.standard_error == pytest.approx(np.hypot(*of_tasks) / 2, rel=0.03), "tasks are drawn independently"
    assert micro.difference == pytest.approx(np.concatenate(list(tasks.values())).mean())
    assert micro.standard_error == pytest.approx(np.hypot(0.6 * of_tasks[0], 0.4 * of_tasks[1]), rel=0.03)
    assert found["boolq"].detectable == pytest.approx(
        (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * found["boolq"].standard_error
    )


def test_alike_answers_to_few_questions_do_not_make_two_models_equal() -> None:
    few, many = (effects({"obqa": np.zeros((1, n))}, binary=True)[MACRO] for n in (20, 3000))
    assert not few.equivalent(0.005) and many.equivalent(0.005)
    assert few.interval[0] < -0.05 and not few.shown


def test_with_seeds_the_interval_is_the_t_test_where_questions_agree() -> None:
    """The seeds move all questions alike, so that questions add nothing."""
    shifts = np.array([0.3, -0.1, 0.4, 0.2, 0.6, 0.1])
    effect = effects({"obqa": np.tile(shifts[:, None], 40)}, binary=False)[MACRO]
    of_scipy = stats.ttest_1samp(shifts, 0)
    assert effect.interval == pytest.approx(of_scipy.confidence_interval())
    assert effect.inner == pytest.approx(of_scipy.confidence_interval(0.9))
    assert effect.standard_error == pytest.approx(shifts.std(ddof=1) / np.sqrt(6))
    assert effect.p == pytest.approx(6 / 64)


@pytest.mark.parametrize(("margin", "seed"), [(margin, seed) for margin in (0.2, 0.5, 1.0) for seed in range(4)])
def test_equivalence_is_statsmodels_two_one_sided_tests(margin: float, seed: int) -> None:
    weightstats = pytest.importorskip("statsmodels.stats.weightstats")
    shifts = np.random.default_rng(seed).normal(0.1, 0.4, 6)
    effect = effects({"obqa": np.tile(shifts[:, None], 40)}, binary=False)[MACRO]
    p = weightstats.DescrStatsW(shifts).ttost_mean(-margin, margin)[0]
    assert effect.equivalent(margin) == (p < 0.05)


@pytest.mark.parametrize(("seeds", "count"), [(4, 5), (6, 5), (6, 11)])
def test_a_family_is_statsmodels_holm_over_scipys_t_tests(seeds: int, count: int) -> None:
    """Of five contrasts whose questions agree; with ``count`` 11, six are without runs."""
    multitest, weightstats = (pytest.importorskip(f"statsmodels.stats.{name}") for name in ("multitest", "weightstats"))
    draws = np.random.default_rng(seeds).normal([[0.0], [0.1], [0.2], [0.5], [-1.0]], 0.1, (5, seeds))
    found = [effects({"obqa": np.tile(x[:, None], 40)}, binary=False)[MACRO] for x in draws]
    tests, rest = [stats.ttest_1samp(x, 0) for x in draws], [1.0] * (count - 5)
    equal = [weightstats.DescrStatsW(x).ttost_mean(-0.3, 0.3)[0] for x in draws]
    expected = [
        multitest.multipletests(p, method="holm")[1][:5] for p in ([test.pvalue for test in tests] + rest, equal + rest)
    ]
    members = family(found, margin=0.3, count=count)
    assert [different for *_, different in members] == pytest.approx(expected[0])
    assert [equal for _, equal, _ in members] == pytest.approx(expected[1])
    for test, (interval, *_) in zip(tests, members, strict=True):
        assert interval == pytest.approx(test.confidence_interval(1 - 0.05 / count))


def test_a_family_of_single_runs_is_of_their_questions() -> None:
    """Of many questions the t is normal; without any difference nothing divides by 0."""
    d = np.random.default_rng(0).normal(0.1, 1, (1, 300))
    (interval, _, p), same = family(
        [effects({"obqa": x}, binary=False)[MACRO] for x in (d, 0 * d)], margin=0.5, count=2
    )
    expected = stats.ttest_1samp(d[0], 0)
    assert p == pytest.approx(2 * expected.pvalue, rel=0.15)
    assert interval == pytest.approx(expected.confidence_interval(0.975), abs=0.01)
    assert same == (pytest.approx((0.0, 0.0)), 0.0, 1.0)


def test_one_seed_among_several_is_as_if_it_had_no_runs() -> None:
    draws = np.random.default_rng(1).normal(0.1, 0.1, (2, 6))
    several = [effects({"obqa": np.tile(x[:, None], 40)}, binary=False)[MACRO] for x in draws]
    lone = effects({"obqa": np.random.default_rng(0).normal(5, 1, (1, 300))}, binary=False)[MACRO]
    one, missing, other = family([several[0], lone, several[1]], margin=0.3, count=3)
    assert [one, other] == family(several, margin=0.3, count=3) and missing == ((-np.inf, np.inf), 1, 1)


def test_a_question_under_six_seeds_is_not_six_questions() -> None:
    """All seeds answer alike: the error is that of one seed, not 1 / √6 of it."""
    d = np.random.default_rng(0).normal(0, 1, (1, 200))
    one, six = (effects({"obqa": np.tile(d, (seeds, 1))}, binary=False)[MACRO] for seeds in (1, 6))
    assert six.standard_error == pytest.approx(one.standard_error)
    noise = np.random.default_rng(1).normal(0, 1, (6, 200))  # and if they have nothing in common, it is 1 / √1200
    rest = effects({"obqa": noise}, binary=False)[MACRO]
    assert rest.standard_error == pytest.approx(1 / np.sqrt(1200), rel=0.35)


def test_fewer_than_six_seeds_show_nothing() -> None:
    shown = {
        seeds: effects({"obqa": 1 + np.random.default_rng(0).normal(0, 0.01, (seeds, 9))}, binary=False)[MACRO]
        for seeds in (3, 5, 6)
    }
    assert [effect.p for effect in shown.values()] == [0.25, 0.0625, 0.03125]
    assert [effect.shown for effect in shown.values()] == [False, False, True]
    assert shown[5].detectable is None and shown[6].detectable is not None


@pytest.mark.parametrize("count", [6, 9])
def test_the_detectable_difference_is_detected_four_times_in_five(count: int) -> None:
    """Seeds alone: as many questions as make their noise small."""
    draws = np.random.default_rng(0).normal(0, 1, (400, count))
    detectable = statistics._detectable(count, seeds=1 / np.sqrt(count), error=1 / np.sqrt(count))
    assert detectable is not None
    power = np.mean([sign_flip(x + detectable) <= 0.05 for x in draws])
    assert power == pytest.approx(0.8, abs=0.05)


def test_six_seeds_of_equal_arms_are_told_apart_as_often_as_they_can_be() -> None:
    """2 of 64 sign patterns: 1/32, with the binomial's bounds."""
    draws = np.random.default_rng(0).normal(0, 1, (4000, 6))
    found = sum(sign_flip(x) <= 0.05 for x in draws)
    low, high = stats.binom.ppf([0.001, 0.999], 4000, 2 / 64)
    assert low <= found <= high
