"""The statistics against scipy, statsmodels and loops, and against draws whose truth is known."""

import math

import numpy as np
import pytest
from scipy import stats

from moslora.compare.statistics import (
    LEVEL,
    MACRO,
    MICRO,
    effects,
    effects_unpaired,
    family_with,
    holm,
)


def answers(seed, n, lost=0.1, won=0.2):
    """Return differences of right and wrong answers."""
    return np.random.default_rng(seed).choice([-1.0, 0.0, 1.0], n, p=[lost, 1 - lost - won, won])


@pytest.mark.parametrize("seed", range(2))
def test_holm_is_statsmodels(seed):
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p = np.random.default_rng(seed).uniform(0, 0.2, 8).tolist()
    assert holm(p) == pytest.approx(multitest.multipletests(p, method="holm")[1])
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_one_task_and_one_seed_is_scipys_t_test():
    d = np.random.default_rng(0).normal(0.1, 1, 70)
    effect = effects({"obqa": d[None]}, binary=False)["obqa"]
    expected = stats.ttest_1samp(d, 0)
    assert effect.p == pytest.approx(expected.pvalue)
    assert effect.interval == pytest.approx(expected.confidence_interval())
    assert effect.equivalence_interval == pytest.approx(expected.confidence_interval(0.9))
    assert effect.distribution.standard_error == pytest.approx(stats.sem(d))


def test_error_of_accuracy_is_bonett_and_prices():
    """statpsych's example: 12 both wrong, 4 and 26 discordant, 6 both right; their 0.09448809 has no C / (C − 1)."""
    d = np.repeat([-1.0, 0.0, 1.0], [4, 18, 26])
    effect = effects({"obqa": d[None]}, binary=True)["obqa"]
    assert effect.difference == pytest.approx(22 / 48), "not moved by the two questions"
    assert effect.distribution.standard_error == pytest.approx(0.09448809 * np.sqrt(50 / 49))


def test_tasks_are_independent():
    tasks = {"boolq": answers(0, 60)[None], "obqa": answers(1, 40, won=0.1)[None]}
    found = effects(tasks, binary=True)
    errors = [found[task].distribution.standard_error for task in tasks]
    macro = found[MACRO]
    micro = found[MICRO]
    assert macro.difference == pytest.approx(np.mean([d.mean() for d in tasks.values()]))
    assert macro.distribution.standard_error == pytest.approx(np.hypot(*errors) / 2)
    assert micro.difference == pytest.approx(np.concatenate(list(tasks.values()), axis=1).mean())
    assert micro.distribution.standard_error == pytest.approx(np.hypot(0.6 * errors[0], 0.4 * errors[1]))
    parts = np.array([0.6 * errors[0], 0.4 * errors[1]]) ** 2
    assert micro.distribution.questions.degrees == pytest.approx(parts.sum() ** 2 / (parts**2 / (59, 39)).sum())
    assert found["boolq"].distribution.questions.degrees == pytest.approx(59)


def crossed(seeds, codes, *, by_seed=1.0, by_cluster=1.0, rest=1.0):
    """Return differences with parts by seed, by cluster, by both, and by answer, shape ``(S, n)``."""
    draw = np.random.default_rng(seeds + len(codes))
    count = codes.max() + 1
    of_seed = by_seed * draw.standard_normal((seeds, 1))
    of_cluster = by_cluster * draw.standard_normal(count)[codes]
    of_both = rest * draw.standard_normal((seeds, count))[:, codes]
    return of_seed + of_cluster + of_both + rest * draw.standard_normal((seeds, len(codes)))


def by_loops(d, codes):
    """Return V_s, V_q and V_i by their definitions."""
    seeds, n = d.shape
    total = math.fsum(d.flat) / (seeds * n)
    of_seed = [math.fsum(row) / n for row in d]
    of_question = [math.fsum(column) / seeds for column in d.T]
    clusters = {code: [i for i in range(n) if codes[i] == code] for code in set(codes.tolist())}
    factor = len(clusters) / (len(clusters) - 1) / n**2
    between_seeds = math.fsum((mean - total) ** 2 for mean in of_seed) / (seeds - 1) / seeds
    between_clusters = 0.0
    of_both = 0.0
    for members in clusters.values():
        between_clusters += math.fsum(of_question[i] - total for i in members) ** 2
        for s in range(seeds):
            of_both += math.fsum(d[s, i] - of_seed[s] - of_question[i] + total for i in members) ** 2
    return between_seeds, factor * between_clusters, factor * of_both / (seeds - 1) / seeds


UNEQUAL = np.repeat(np.arange(9), (1, 1, 2, 2, 3, 4, 5, 5, 7))


@pytest.mark.parametrize("codes", [np.arange(30), np.arange(30) % 7, np.random.default_rng(0).permutation(UNEQUAL)])
def test_variances_are_those_of_loops(codes):
    d = crossed(4, codes, rest=0.3)
    effect = effects({"obqa": d}, binary=False, clusters={"obqa": codes})[MACRO]
    seeds, questions, both = by_loops(d, codes)
    found = effect.distribution
    assert effect.difference == pytest.approx(d.mean())
    assert (found.seeds.variance, found.seeds.degrees) == (pytest.approx(seeds), 3)
    assert (found.questions.variance, found.questions.degrees) == (pytest.approx(questions), codes.max())
    assert found.interaction == pytest.approx(both)
    assert found.standard_error**2 == pytest.approx(seeds + questions - both), "what varies by both is counted once"
    of_one = effects({"obqa": d[:1]}, binary=False, clusters={"obqa": codes})[MACRO].distribution
    _, questions, _ = by_loops(d[[0, 0]], codes)
    assert (of_one.seeds.variance, of_one.interaction) == (0, 0)
    assert of_one.questions.variance == pytest.approx(questions)


def test_equal_answers_to_few_questions_are_no_equality():
    few = effects({"obqa": np.zeros((1, 20))}, binary=True)[MACRO]
    many = effects({"obqa": np.zeros((1, 3000))}, binary=True)[MACRO]
    assert few.distribution.beyond(0.005) > LEVEL >= many.distribution.beyond(0.005)
    assert few.interval[0] < -0.05 and not few.is_shown


def family(contrasts, *, margin, count):
    return family_with(contrasts, [one.distribution.beyond(margin) for one in contrasts], count=count)


@pytest.mark.parametrize(("seeds", "count"), [(4, 5), (6, 5), (6, 11)])
def test_a_family_is_statsmodels_holm_over_scipys_t_tests(seeds, count):
    """Five contrasts have runs, with ``count`` 11 six more have none."""
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    weightstats = pytest.importorskip("statsmodels.stats.weightstats")
    draws = np.random.default_rng(seeds).normal([[0.0], [0.1], [0.2], [0.5], [-1.0]], 0.1, (5, seeds))
    found = [effects({"obqa": np.tile(x[:, None], 40)}, binary=False)[MACRO] for x in draws]
    tests = [stats.ttest_1samp(x, 0) for x in draws]
    without_runs = [1.0] * (count - 5)
    different = [test.pvalue for test in tests]
    equal = [weightstats.DescrStatsW(x).ttost_mean(-0.3, 0.3)[0] for x in draws]

    def by_holm(p):
        """Return Holm's p of the five contrasts."""
        return multitest.multipletests([*p, *without_runs], method="holm")[1][:5]

    members = family(found, margin=0.3, count=count)
    assert [member.different for member in members] == pytest.approx(by_holm(different))
    assert [member.equal for member in members] == pytest.approx(by_holm(equal))
    for test, (interval, *_) in zip(tests, members, strict=True):
        assert interval == pytest.approx(test.confidence_interval(1 - 0.05 / count))


def test_family_of_single_runs_is_over_questions():
    """Arms without any difference do not divide by 0."""
    d = np.random.default_rng(0).normal(0.1, 1, (1, 300))
    (interval, _, p), same = family(
        [effects({"obqa": x}, binary=False)[MACRO] for x in (d, 0 * d)], margin=0.5, count=2
    )
    expected = stats.ttest_1samp(d[0], 0)
    assert p == pytest.approx(2 * expected.pvalue)
    assert interval == pytest.approx(expected.confidence_interval(0.975))
    assert same == (pytest.approx((0.0, 0.0)), 0.0, 1.0)


def test_single_seed_among_several_has_p_one():
    draws = np.random.default_rng(1).normal(0.1, 0.1, (2, 6))
    several = [effects({"obqa": np.tile(x[:, None], 40)}, binary=False)[MACRO] for x in draws]
    lone = effects({"obqa": np.random.default_rng(0).normal(5, 1, (1, 300))}, binary=False)[MACRO]
    one, missing, other = family([several[0], lone, several[1]], margin=0.3, count=3)
    assert [one, other] == family(several, margin=0.3, count=3) and missing == ((-np.inf, np.inf), 1, 1)


def test_a_question_under_six_seeds_is_not_six_questions():
    """All seeds answer alike: the error is that of one seed, not 1 / √6 of it."""
    d = np.random.default_rng(0).normal(0, 1, (1, 200))
    one = effects({"obqa": d}, binary=False)[MACRO]
    six = effects({"obqa": np.tile(d, (6, 1))}, binary=False)[MACRO]
    assert six.distribution.standard_error == pytest.approx(one.distribution.standard_error)
    noise = np.random.default_rng(1).normal(0, 1, (6, 200))  # and if they have nothing in common, it is 1 / √1200
    rest = effects({"obqa": noise}, binary=False)[MACRO]
    assert rest.distribution.standard_error == pytest.approx(1 / np.sqrt(1200), rel=0.35)


def test_unpaired_arms_are_welchs():
    """scipy's test where only seeds vary, and where only questions do; the order of seeds does not matter."""
    draw = np.random.default_rng(5)
    before = draw.normal(0, 1, (3, 1))
    after = draw.normal(1, 0.2, (6, 1))
    found = effects_unpaired({"held out": before}, {"held out": after}, binary=False)[MACRO]
    test = stats.ttest_ind(after[:, 0], before[:, 0], equal_var=False)
    assert found.p == pytest.approx(test.pvalue, rel=1e-6) and found.seeds == 3
    assert found.interval == pytest.approx(tuple(test.confidence_interval()), rel=1e-6)
    hard = draw.normal(0, 3, 80)
    tastes = draw.normal(0.1, 0.5, 80)
    one = np.tile(hard, (2, 1))
    other = np.tile(hard + tastes, (4, 1))
    found = effects_unpaired({"obqa": one}, {"obqa": other}, binary=False)[MACRO]
    assert found.p == pytest.approx(stats.ttest_1samp(tastes, 0).pvalue, rel=1e-6), "questions are paired"


def test_components_of_unpaired_arms_add_up():
    """Variances of two arms, by loops in float64."""
    draw = np.random.default_rng(6)
    before = {}
    after = {}
    for task, n in (("boolq", 30), ("obqa", 20)):
        before[task] = draw.normal(0, 1, (3, n))
        after[task] = draw.normal(0, 2, (5, n))
    found = effects_unpaired(before, after, binary=False)[MACRO]
    seeds = interaction = questions = 0.0
    for arm in (before, after):
        means = np.mean([of_task.mean(axis=1) for of_task in arm.values()], axis=0)
        seeds += np.var(means, ddof=1) / len(means)
        for of_task in arm.values():
            residual = of_task - of_task.mean(axis=0) - of_task.mean(axis=1, keepdims=True) + of_task.mean()
            s, n = of_task.shape
            by_seed = [np.sum(row**2) * n / (n - 1) / n**2 for row in residual]
            interaction += sum(by_seed) / (s - 1) / s / 4
    for task in before:
        questions += stats.sem(after[task].mean(axis=0) - before[task].mean(axis=0)) ** 2 / 4
    distribution = found.distribution
    assert (distribution.seeds.variance, distribution.questions.variance, distribution.interaction) == pytest.approx(
        (seeds, questions, interaction), rel=1e-12
    )
    backwards = effects_unpaired({task: x[::-1] for task, x in before.items()}, after, binary=False)[MACRO]
    assert backwards.interval == pytest.approx(found.interval)
