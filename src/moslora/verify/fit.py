"""Share k of the adapter that a server computes: server = base + k · (run − base), fitted on log-probabilities.

For each option of each question, y is its log-probability in nats minus the mean over the question's options.
Subtracting the mean removes what all options share, such as the form of the answer, which even a weak adapter has
learned. Then

    k = Σ (y_server − y_base) (y_run − y_base) / Σ (y_run − y_base)²

is about 1 for the run, 0 for its base, and another number for a wrong scale of the adapter. The residual,
y_server − y_base − k (y_run − y_base), comes from rounding, a quantisation, or another model. Answers are not linear in
the scale: an adapter scaled by 0.9 may show a k of 0.95. Intervals come from a bootstrap over questions. Rounding of
the run's own answers makes k smaller where the adapter moves them little: by the variance of the rounding beside that
of y_run − y_base. The server's residual bounds this. Only numpy is needed.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moslora.runs.intervals import Interval

RESAMPLES = 2_000
"""Number of bootstrap samples."""

LEVEL = 0.99
"""Confidence level of the interval of k."""

Floats = NDArray[np.float64]

Centered = Sequence[Floats]
"""Answers of one model: for each question the y of its options, shape ``(options,)``."""


def centered(scores: Iterable[Sequence[float | None]]) -> Centered:
    """Subtract from the log-probabilities of each question's options their mean."""
    rows = [np.array(of_question, float) for of_question in scores]
    return [row - row.mean() for row in rows]


@dataclass(frozen=True)
class Fit:
    """A fitted share of an adapter. Sizes are root mean squares over options, in nats.

    Attributes:
        questions: number of questions.
        k: share of the adapter.
        interval: interval of k.
        effect: size of run − base.
        distance: size of server − run.
        from_base: size of server − base.
        left: size of the residual.
    """

    questions: int
    k: float
    interval: Interval
    effect: float
    distance: float
    from_base: float
    left: float

    @property
    def attenuation(self) -> float:
        """Upper bound of the amount by which rounding of the run's answers lowers k; 1 if the adapter has no effect."""
        if self.effect == 0:
            return 1.0
        return min(1.0, (self.left / self.effect) ** 2)


def fit(server: Centered, run: Centered, base: Centered) -> Fit:
    """Fit k over at least one question, with its interval over resampled questions."""
    moved = _less(run, base)
    served = _less(server, base)
    products = np.array([float(y @ x) for y, x in zip(served, moved, strict=True)])
    squares = np.array([float(x @ x) for x in moved])
    k = float(products.sum() / max(squares.sum(), 1e-300))
    n = len(squares)
    drawn = np.random.default_rng(0).integers(0, n, (RESAMPLES, n), dtype=np.int32)
    ratios = products[drawn].sum(axis=1) / np.maximum(squares[drawn].sum(axis=1), 1e-300)
    low, high = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return Fit(
        questions=n,
        k=k,
        interval=(float(low), float(high)),
        effect=size(moved),
        distance=distance(server, run),
        from_base=size(served),
        left=size([y - k * x for y, x in zip(served, moved, strict=True)]),
    )


def _less(one: Centered, other: Centered) -> Centered:
    """Difference of two models' answers, question by question."""
    return [first - second for first, second in zip(one, other, strict=True)]


def size(parts: Sequence[Floats]) -> float:
    """Root mean square over all options."""
    return math.sqrt(float((np.concatenate(parts) ** 2).mean()))


def distance(one: Centered, other: Centered) -> float:
    """Root mean square difference of two models' answers, in nats."""
    return size(_less(one, other))


def distances(one: Centered, other: Centered) -> Floats:
    """Root mean square difference of two models' answers to each question, in nats, shape ``(questions,)``."""
    return np.array([size([part]) for part in _less(one, other)])
