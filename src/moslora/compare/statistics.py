"""Paired statistics of two arms, B against A: over questions with one run each, over seeds and questions with several.

    d_t[s, i] = y_B − y_A      y the outcome of question i of task t under seed s
    D_w = Σ_t w_t · mean_{s,i} d_t[s, i]      one task; macro: w_t = 1/k; micro: w_t = n_t / n

The answers to a question under several seeds are resampled together. Numpy and scipy only.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtri, stdtrit

LEVEL = 0.05
"""The level of every test, two-sided."""

POWER = 0.8
"""The power with which a detectable effect is found."""

RESAMPLES = 10_000

EXACT_FLIPS = 12
"""Maximum number of differences of which every combination of signs is tried; beyond it, a random sample of
`RESAMPLES`."""

MACRO = "macro average"
"""Every task has the same weight."""

MICRO = "micro average"
"""Every question has the same weight."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Effect:
    """A weighted difference D and what is known of it.

    Attributes:
        difference: D, in units of the outcome.
        standard_error: of D, for other questions and, with several seeds, for other seeds.
        interval: of level 1 − `LEVEL`.
        inner: of level 1 − 2 · `LEVEL`. Inside ± m, it rejects both differences beyond m: the two one-sided tests.
        p: of the exact or sampled sign-flip test over seeds, or with one seed over questions.
        detectable: the true difference that is found in `POWER` of such comparisons; ``None`` if no data could reach
            `LEVEL`.
        degrees: ν of Student's t: S − 1; with one seed infinite, as the questions are many.
    """

    difference: float
    standard_error: float
    interval: tuple[float, float]
    inner: tuple[float, float]
    p: float
    detectable: float | None
    degrees: float = math.inf

    @property
    def shown(self) -> bool:
        """Whether there is a difference, by the test and by the interval."""
        return self.p <= LEVEL and not self.interval[0] <= 0 <= self.interval[1]

    def equivalent(self, margin: float) -> bool:
        """Whether any difference is smaller than ``margin``, by two one-sided tests of `LEVEL`."""
        return -margin < self.inner[0] and self.inner[1] < margin


class Member(NamedTuple):
    """What holds of a contrast, jointly with all others of its family.

    Attributes:
        interval: the simultaneous one.
        equal: p of a difference of the margin or more, adjusted; small if the arms are equal.
        different: p of no difference, adjusted; small if the arms differ.
    """

    interval: tuple[float, float]
    equal: float
    different: float


def family(contrasts: Sequence[Effect], *, margin: float, count: int) -> list[Member]:
    """What holds for all contrasts of a family of ``count`` = k at once, however they depend on each other.

    - D ± t_{1 − α/2k} · se, Bonferroni's: at most `LEVEL` of such families have an interval without its true D.
    - Holm's p of a difference of the ``margin`` m or more, P(T ≥ (m − |D|) / se), of two one-sided tests.
    - Holm's p of no difference, 2 P(T ≥ |D| / se); sign flips over S seeds could not go below 2k / 2^S.

    ``contrasts`` are those with runs; p of the others is 1. So is p of a contrast of one seed where others have
    several, as one seed says nothing of other seeds; its interval is infinite.
    """
    several_seeds = any(one.degrees < math.inf for one in contrasts)
    intervals = []
    equal = []
    different = []
    for one in contrasts:
        if several_seeds and one.degrees == math.inf:
            intervals.append((-math.inf, math.inf))
            equal.append(1.0)
            different.append(1.0)
            continue
        law = stats.t(one.degrees, one.difference, max(one.standard_error, 1e-300))
        intervals.append(law.interval(1 - LEVEL / count))
        equal.append(float(max(law.cdf(-margin), law.sf(margin))))
        different.append(2 * float(min(law.cdf(0), law.sf(0))))
    without_runs = [1.0] * (count - len(contrasts))
    adjusted_equal = holm(equal + without_runs)
    adjusted_different = holm(different + without_runs)
    with_runs = zip(intervals, adjusted_equal, adjusted_different, strict=False)  # ends with the intervals
    return [Member(*numbers) for numbers in with_runs]


def effects(differences: Mapping[str, Floats], *, binary: bool, resamples: int = RESAMPLES) -> dict[str, Effect]:
    """The effect of each task, and under the keys `MACRO` and `MICRO` of the averages.

    Args:
        differences: task -> d, shape ``(S, n_t)``, S the same for all and n_t at least 2.
        binary: y is 0 or 1.
        resamples: of the bootstrap over questions.
    """
    tasks = list(differences.values())
    seeds = len(tasks[0])
    sizes = np.array([d.shape[1] for d in tasks], float)
    weights = dict(zip(differences, np.eye(len(tasks)), strict=True))
    weights[MACRO] = np.full(len(tasks), 1 / len(tasks))
    weights[MICRO] = sizes / sizes.sum()
    pseudo = 0.0
    if binary:
        pseudo = 1 / math.sqrt(seeds)
    random = np.random.default_rng(0)
    columns = [_resampled_means(d.mean(axis=0), random, pseudo=pseudo, resamples=resamples) for d in tasks]
    replicates = np.stack(columns, axis=1)  # (R, k)
    if seeds == 1:
        return {name: _over_questions(_parts_of_sum(tasks, w), replicates @ w) for name, w in weights.items()}
    means = np.stack([d.mean(axis=1) for d in tasks], axis=1)  # (S, k)
    interactions = np.array([_interaction(d) for d in tasks])
    found = {}
    for name, w in weights.items():
        questions = float((replicates @ w).var())
        found[name] = _over_seeds(means @ w, questions=questions, interaction=float(w**2 @ interactions))
    return found


def _parts_of_sum(tasks: Sequence[Floats], weights: Floats) -> Floats:
    """Each question's part of D_w with one seed, w_t d_t[i] / n_t; shape ``(n,)``, over all tasks."""
    return np.concatenate([weight * d[0] / d.size for weight, d in zip(weights, tasks, strict=True)])


def _over_questions(parts: Floats, replicates: Floats) -> Effect:
    """With one seed: percentiles of the bootstrap. ``parts`` are those of each question, and sum to D."""
    levels = [LEVEL / 2, LEVEL, 1 - LEVEL, 1 - LEVEL / 2]
    low, inner_low, inner_high, high = np.quantile(replicates, levels).tolist()
    error = float(replicates.std())
    return Effect(
        difference=float(parts.sum()),
        standard_error=error,
        interval=(low, high),
        inner=(inner_low, inner_high),
        p=sign_flip(parts),
        detectable=float(ndtri(1 - LEVEL / 2) + ndtri(POWER)) * error,
    )


def _over_seeds(values: Floats, *, questions: float, interaction: float) -> Effect:
    """With S seeds: se² = se²_seeds + se²_questions − se²_interaction, Student's t with S − 1 degrees.

    The interaction, what varies by seed and question together, is in both of the first two (the crossed design of
    Owen 2007, doi 10.1214/07-AOAS122); se² is never below either. ``values`` are D by seed, shape ``(S,)``; the others
    are variances.
    """
    count = len(values)
    difference = float(values.mean())
    seeds = float(values.var(ddof=1)) / count
    error = math.sqrt(max(seeds + questions - interaction, seeds, questions))
    half = float(stdtrit(count - 1, 1 - LEVEL / 2)) * error
    inner = float(stdtrit(count - 1, 1 - LEVEL)) * error
    return Effect(
        difference=difference,
        standard_error=error,
        interval=(difference - half, difference + half),
        inner=(difference - inner, difference + inner),
        p=sign_flip(values),
        detectable=_detectable(count, seeds=math.sqrt(seeds), error=error),
        degrees=count - 1,
    )


def _detectable(count: int, *, seeds: float, error: float) -> float | None:
    """The true difference that both the sign flips over ``count`` seeds and the interval find in `POWER` of cases.

    For the interval, (t_{1−α/2} + t_{power}) · se, Student's t of ``count`` − 1 degrees. With the smallest number of
    seeds whose flips can reach α, they do so only if all have the same sign: Φ(δ/σ)^S = power, σ = √S · se_seeds. With
    more, the flips are close to Student's t.
    """
    if smallest_p(count) > LEVEL:
        return None
    of_interval = float(stdtrit(count - 1, 1 - LEVEL / 2) + stdtrit(count - 1, POWER)) * error
    of_flips = float(ndtri(POWER ** (1 / count))) * math.sqrt(count) * seeds
    fewest_seeds = smallest_p(count - 1) > LEVEL  # one less could not reach the level
    if fewest_seeds:
        return max(of_interval, of_flips)
    return of_interval


def smallest_p(count: int) -> float:
    """The smallest p of a sign-flip test of ``count`` differences: 2 / 2^count."""
    return 2.0 ** (1 - count)


def sign_flip(values: Floats) -> float:
    """Share of the sign combinations with |Σ ± x| ≥ |Σ x|: p of the hypothesis that x and −x are equally likely.

    Exact for up to `EXACT_FLIPS` values that are not 0, and for more if all have the same size: McNemar's exact test.
    Otherwise from a fixed random sample of flips, in which the observed one counts, so that p is never too small.
    """
    x = values[values != 0]
    if not len(x):
        return 1.0
    size = np.abs(x)
    same_size = size.max() <= size.min() * (1 + 1e-9)
    if len(x) > EXACT_FLIPS and same_size:
        return float(stats.binomtest(int((x > 0).sum()), len(x)).pvalue)
    least = abs(x.sum()) * (1 - 1e-9)  # the same sum in another order is as extreme
    if len(x) <= EXACT_FLIPS:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(x))))
        return float((np.abs(signs @ x) >= least).mean())
    random = np.random.default_rng(0)
    extreme = 1  # the observed one
    for rows in _parts(RESAMPLES, len(x)):
        flips = random.integers(0, 2, (rows, len(x)), dtype=np.int8).astype(float)
        extreme += int((np.abs(x.sum() - 2 * (flips @ x)) >= least).sum())
    return extreme / (RESAMPLES + 1)


def _resampled_means(values: Floats, random: np.random.Generator, *, pseudo: float, resamples: int) -> Floats:
    """Bootstrap over questions: means of n drawn from n with replacement, shape ``(resamples,)``.

    Args:
        values: of the questions, shape ``(n,)``.
        random: draws them.
        pseudo: this number and its negative are added as two questions, without moving the centre; 0 for none. Without
            them a few questions that both arms answer alike would give an interval of length 0. With one seed it is 1:
            one more question of each kind in McNemar's table (after Bonett and Price 2012). Over S seeds such a
            question's mean is about 1/√S.
        resamples: R.
    """
    centre = values.mean()
    if pseudo:
        values = np.append(values, (pseudo, -pseudo))
    n = len(values)
    means = []
    for rows in _parts(resamples, n):
        drawn = random.integers(0, n, (rows, n), dtype=np.int32)
        means.append(values[drawn].mean(axis=1))
    return np.concatenate(means) + centre - values.mean()


def _parts(samples: int, size: int) -> Iterator[int]:
    """Numbers of samples of this size to draw at a time, which bounds the memory: 2 million values."""
    most = max(1, 2**21 // size)
    for begin in range(0, samples, most):
        yield min(most, samples - begin)


def _interaction(d: Floats) -> float:
    """Variance of the mean of d by what varies by seed and question together: Σ e² / ((S − 1)(n − 1)) / (S n).

    e = d − (its seed's mean) − (its question's mean) + (the mean); d has shape ``(S, n)``.
    """
    residual = d - d.mean(axis=0) - d.mean(axis=1, keepdims=True) + d.mean()
    seeds, n = d.shape
    return float((residual**2).sum() / ((seeds - 1) * (n - 1)) / (seeds * n))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p: the i-th smallest of m times m − i + 1, made monotone, at most 1."""
    adjusted = [0.0] * len(p)
    ascending = sorted(range(len(p)), key=p.__getitem__)
    largest = 0.0
    for smaller, i in enumerate(ascending):
        largest = max(largest, min(1.0, (len(p) - smaller) * p[i]))
        adjusted[i] = largest
    return adjusted
