"""Paired statistics of two arms, B against A, over questions, and with several runs also over seeds.

    d_t[s, i] = y_B − y_A      y the outcome of question i of task t under seed s
    D_w = Σ_t w_t · mean_{s,i} d_t[s, i]      one task; macro: w_t = 1/k; micro: w_t = n_t / n

D varies by seeds and by questions (the crossed design of Owen 2007, doi 10.1214/07-AOAS122):

    V_s    by other seeds: the variance of D by seed, / S, with S − 1 degrees
    V_q    by other questions: the cluster-robust variance of the mean of the questions' means over seeds
    V_i    by both together, which is in V_s and in V_q

Tests, intervals and equalities of one contrast and of many are all read from one distribution
(`moslora.compare.distribution`); only the level differs. Numpy and scipy only.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moslora.compare.distribution import DifferenceDistribution, Floats, VarianceEstimate
from moslora.runs.scores import MACRO, MICRO

LEVEL = 0.05
"""Two-sided level of every test."""

POWER = 0.8
"""Power at which an effect counts as detectable."""

Codes = NDArray[np.int_]
"""Index of each question's cluster, shape ``(n,)``."""


@dataclass(frozen=True)
class Effect:
    """A weighted difference D, with the tests of it.

    Attributes:
        distribution: distribution of the true difference, in units of the outcome.
        seeds: number of pairs of runs, S.
    """

    distribution: DifferenceDistribution
    seeds: int

    @property
    def difference(self) -> float:
        """Estimated difference D between the arms."""
        return self.distribution.difference

    @cached_property
    def interval(self) -> tuple[float, float]:
        """Interval of confidence 1 − `LEVEL`."""
        return self.distribution.interval(LEVEL)

    @cached_property
    def equivalence_interval(self) -> tuple[float, float]:
        """Interval of confidence 1 − 2 · `LEVEL`. If it lies within ± m, both one-sided tests reject a difference
        beyond m."""
        return self.distribution.interval(2 * LEVEL)

    @cached_property
    def p(self) -> float:
        """Two-sided p of no difference."""
        return self.distribution.p()

    @cached_property
    def detectable(self) -> float:
        """True difference that a share of `POWER` of such comparisons would find."""
        return self.distribution.detectable(level=LEVEL, power=POWER)

    @property
    def is_shown(self) -> bool:
        """Whether a difference is shown: `interval` does not contain 0."""
        return self.p <= LEVEL


class Member(NamedTuple):
    """Interval and p values of a contrast in a family, adjusted for all its contrasts.

    Attributes:
        interval: simultaneous interval.
        equal: adjusted p of a difference of the margin or more; small if the arms are equal.
        different: adjusted p of no difference; small if the arms differ.
    """

    interval: tuple[float, float]
    equal: float
    different: float


def family_with(contrasts: Sequence[Effect], unequal: Sequence[float], *, count: int) -> list[Member]:
    """Return the members of a family of ``count`` = k contrasts, which may depend on each other in any way.

    - Bonferroni's intervals, of confidence 1 − α/k each: in at most `LEVEL` of families any interval misses its true D.
    - Holm's p of a difference of the margin or more, and of no difference.

    A contrast without runs has p 1. So has a contrast of one seed where others have several, as one seed says nothing
    of other seeds; its interval is infinite.

    Args:
        contrasts: effects of the contrasts that have runs.
        unequal: p of a difference of the margin or more, of each of these.
        count: number of contrasts, with runs or without.
    """
    if not contrasts:
        return []
    unknown = Member((-math.inf, math.inf), 1.0, 1.0)
    several_seeds = any(effect.seeds > 1 for effect in contrasts)
    members = [unknown] * count
    for place, (effect, p) in enumerate(zip(contrasts, unequal, strict=True)):
        if effect.seeds > 1 or not several_seeds:
            members[place] = Member(effect.distribution.interval(LEVEL / count), p, effect.p)
    intervals, equal, different = zip(*members, strict=True)
    return [*map(Member, intervals, holm(equal), holm(different))][: len(contrasts)]


def effects(
    differences: Mapping[str, Floats], *, binary: bool, clusters: Mapping[str, Codes] | None = None
) -> dict[str, Effect]:
    """Return the effect of each task, and under the keys `MACRO` and `MICRO` those of the averages.

    Args:
        differences: task -> d, shape ``(S, n_t)``, with the same S for all.
        binary: whether y is 0 or 1.
        clusters: task -> index of each question's cluster, shape ``(n_t,)``, with at least two clusters. Without an
            entry each question of a task is a cluster.
    """
    tasks = []
    for task, d in differences.items():
        _, codes = np.unique((clusters or {}).get(task, np.arange(d.shape[1])), return_inverse=True)
        tasks.append(_Components.of(d, codes, binary=binary))
    sizes = np.array([d.shape[1] for d in differences.values()], float)
    weights = dict(zip(differences, np.eye(len(tasks)), strict=True))
    weights |= {MACRO: np.full(len(tasks), 1 / len(tasks)), MICRO: sizes / sizes.sum()}
    most = 1.0 if binary else math.inf
    return {name: _weighted(tasks, of_tasks, most=most) for name, of_tasks in weights.items()}


def effects_unpaired(
    before: Mapping[str, Floats],
    after: Mapping[str, Floats],
    *,
    binary: bool,
    clusters: Mapping[str, Codes] | None = None,
) -> dict[str, Effect]:
    """Return the effects of two arms whose seeds are independent. Questions are paired.

    V_s and V_i are sums over the arms, with Welch's degrees of freedom (1947, doi 10.1093/biomet/34.1-2.28).

    Args:
        before: task -> y_A, shape ``(S_A, n_t)``, with the same S_A ≥ 2 for all.
        after: task -> y_B, shape ``(S_B, n_t)``, with the same S_B ≥ 2 for all.
        binary: whether y is 0 or 1.
        clusters: as in `effects`.
    """
    effects_before, effects_after = (effects(y, binary=False, clusters=clusters) for y in (before, after))
    seeds = min(effects_before[MACRO].seeds, effects_after[MACRO].seeds)
    means = {}
    for task, y in before.items():
        difference = after[task].mean(axis=0) - y.mean(axis=0)
        means[task] = np.tile(difference, (seeds, 1))  # alike under every seed, which leaves V_q alone
    unpaired = {}
    for name, effect in effects(means, binary=binary, clusters=clusters).items():
        one, other = effects_before[name].distribution, effects_after[name].distribution
        distribution = replace(
            effect.distribution, seeds=_sum([one.seeds, other.seeds]), interaction=one.interaction + other.interaction
        )
        unpaired[name] = Effect(distribution, seeds)
    return unpaired


@dataclass(frozen=True)
class _Components:
    """Mean and variances of one task.

    Attributes:
        by_seed: mean of d under each seed, shape ``(S,)``.
        questions: V_q; 0 for an outcome of runs, which has no questions.
        interaction: V_i; 0 with one seed.
    """

    by_seed: Floats
    questions: VarianceEstimate
    interaction: float

    @classmethod
    def of(cls, d: Floats, codes: Codes, *, binary: bool) -> "_Components":
        """Estimate the variance components of the differences ``d``, shape ``(S, n)``: of seeds, questions and both.

        ``codes`` are the clusters of the questions, 0 … C − 1.
        """
        seeds, n = d.shape
        by_seed = d.mean(axis=1)
        if n == 1:
            return cls(by_seed, VarianceEstimate(0.0, 0), interaction=0.0)
        means = d.mean(axis=0)
        pseudo = 1 / math.sqrt(seeds) if binary else 0.0
        questions = VarianceEstimate(_variance_of_mean(means, codes, pseudo=pseudo), int(codes.max()))
        interaction = 0.0
        if seeds > 1:
            residual = d - means - by_seed[:, None] + d.mean()
            interaction = sum(_variance_of_mean(rest, codes) for rest in residual) / (seeds - 1) / seeds
        return cls(by_seed, questions, interaction)


def _variance_of_mean(values: Floats, codes: Codes, *, pseudo: float = 0.0) -> float:
    """Return the cluster-robust variance of the mean of x, Σ_c (Σ_{i in c} (x_i − x̄))² · C / (C − 1) / n².

    Args:
        values: x, shape ``(n,)``.
        codes: index of each value's cluster, shape ``(n,)``.
        pseudo: value of one more cluster of the average size, and its negative that of another; 0 for neither. Without
            them a few questions that both arms answer alike would give an interval of length 0. With one seed it is 1:
            where each question is alone, one more question of each kind in McNemar's table (Bonett and Price 2012, doi
            10.3102/1076998611411915). Over S seeds such a question's mean is about 1/√S.
    """
    weights = np.ones(len(values))
    if pseudo:
        count = codes.max() + 1
        size = len(values) / count
        values = np.append(values, (pseudo, -pseudo))
        codes = np.append(codes, (count, count + 1))
        weights = np.append(weights, (size, size))
    n = weights.sum()
    sums = np.bincount(codes, weights=weights * (values - weights @ values / n))
    return float(sums @ sums * len(sums) / (len(sums) - 1) / n**2)


def _weighted(tasks: Sequence[_Components], weights: Floats, *, most: float) -> Effect:
    """Return the effect averaged over the tasks by ``weights``; ``most`` is the largest possible size of the effect."""
    by_seed = weights @ np.array([task.by_seed for task in tasks])  # D of each seed
    interaction = float(weights**2 @ np.array([task.interaction for task in tasks]))
    weighted = []
    for weight, task in zip(weights, tasks, strict=True):
        weighted.append(VarianceEstimate(weight**2 * task.questions.variance, task.questions.degrees))
    seeds = len(by_seed)
    of_seeds = VarianceEstimate(0.0, 0.0)
    if seeds > 1:
        of_seeds = VarianceEstimate(float(by_seed.var(ddof=1)) / seeds, seeds - 1)
    return Effect(DifferenceDistribution(float(by_seed.mean()), of_seeds, _sum(weighted), interaction, most), seeds)


def _sum(estimates: Sequence[VarianceEstimate]) -> VarianceEstimate:
    """Return V = Σ V_t, with Satterthwaite's degrees of freedom, V² / Σ (V_t² / ν_t)."""
    variance = sum(estimate.variance for estimate in estimates)
    if not variance:
        return VarianceEstimate(0.0, sum(estimate.degrees for estimate in estimates))
    inverse = sum((estimate.variance / variance) ** 2 / estimate.degrees for estimate in estimates)
    return VarianceEstimate(variance, 1 / inverse)


def holm(p: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p: the i-th smallest of m times m − i + 1, made monotone, at most 1."""
    order = np.argsort(p)
    times = np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(times * np.array(p)[order]).clip(max=1)
    return adjusted.tolist()
