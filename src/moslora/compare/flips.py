"""Sign flips: a test that assumes no distribution, and whose p has a floor. A check beside the law of a difference."""

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import special  # not scipy.stats, which takes a tenth of a command's start

EXACT = 12
"""Maximum number of differences of which every combination of signs is tried; beyond it, a random sample."""

SAMPLED = 10_000
"""Combinations in a random sample."""


def smallest_p(count: int) -> float:
    """The smallest p of a sign-flip test of ``count`` differences: 2 / 2^count."""
    return 2.0 ** (1 - count)


def sign_flip(values: NDArray[np.float64]) -> float:
    """Share of the sign combinations with |Σ ± x| ≥ |Σ x|: p of the hypothesis that x and −x are equally likely.

    Exact for up to `EXACT` values that are not 0, and for more if all have the same size: McNemar's exact test.
    Otherwise from a fixed random sample of flips, in which the observed one counts, so that p is never too small.
    """
    x = values[values != 0]
    if not len(x):
        return 1.0
    size = np.abs(x)
    same_size = size.max() <= size.min() * (1 + 1e-9)
    if len(x) > EXACT and same_size:
        positive = int((x > 0).sum())
        fewer = min(positive, len(x) - positive)
        return min(1.0, 2 * float(special.bdtr(fewer, len(x), 0.5)))
    least = abs(x.sum()) * (1 - 1e-9)  # the same sum in another order is as extreme
    if len(x) <= EXACT:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(x))))
        return float((np.abs(signs @ x) >= least).mean())
    random = np.random.default_rng(0)
    extreme = 1  # the observed one
    for rows in _parts(SAMPLED, len(x)):
        flips = random.integers(0, 2, (rows, len(x)), dtype=np.int8).astype(float)
        extreme += int((np.abs(x.sum() - 2 * (flips @ x)) >= least).sum())
    return extreme / (SAMPLED + 1)


def _parts(samples: int, size: int) -> Iterator[int]:
    """Numbers of samples of this size to draw at a time, which bounds the memory: 2 million values."""
    most = max(1, 2**21 // size)
    for begin in range(0, samples, most):
        yield min(most, samples - begin)
