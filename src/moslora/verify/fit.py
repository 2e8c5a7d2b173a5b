"""How much of the adapter a server computes: server = base + k · (run − base), fitted on log-probabilities.

For each option of each question, y is its log-probability in nats less the mean over the question's options. So what
all options share is left out: there an adapter soon has all of its effect, whatever its scale. Then

    k = Σ (y_server − y_base) (y_run − y_base) / Σ (y_run − y_base)²

is about 1 for the run, 0 for its base, and between or beyond for a wrong scale of the adapter. What is left,
y_server − y_base − k (y_run − y_base), is rounding, a quantisation, or another model. Answers are no straight line in
the scale: an adapter scaled by 0.9 may show a k of 0.95. Intervals are of a bootstrap over questions. Rounding of the
run's own answers makes k smaller, where the adapter moves them little: by their variance beside that of y_run − y_base,
of which what is left of the server is a bound. Numpy only.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moslora.runs.intervals import Interval

RESAMPLES = 2_000

LEVEL = 0.99
"""Of the interval of k."""

Floats = NDArray[np.float64]

Centered = Sequence[Floats]
"""The answers of one model to some questions: of each the y of its options."""


def centered(scores: Iterable[Sequence[float | None]]) -> Centered:
    """The answers with these log-probabilities of each question's options."""
    rows = [np.array(of_question, float) for of_question in scores]
    return [row - row.mean() for row in rows]


@dataclass(frozen=True)
class Fit:
    """What the answers of a server say. Sizes are root mean squares over options, in nats.

    Attributes:
        questions: their number.
        k: the share of the adapter.
        interval: of k.
        effect: of the adapter, run − base.
        distance: server − run.
        from_base: server − base.
        left: what k leaves.
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
        """What rounding of the run's answers takes from k, at most; 1 if the adapter does nothing here."""
        if self.effect == 0:
            return 1.0
        return min(1.0, (self.left / self.effect) ** 2)


def fit(server: Centered, run: Centered, base: Centered) -> Fit:
    """The fit over at least one question, with percentiles of k over resampled questions."""
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
    return [first - second for first, second in zip(one, other, strict=True)]


def size(parts: Sequence[Floats]) -> float:
    """√ of the mean square over all options."""
    return math.sqrt(float((np.concatenate(parts) ** 2).mean()))


def distance(one: Centered, other: Centered) -> float:
    """How far the answers of two models are apart, in nats."""
    return size(_less(one, other))


def distances(one: Centered, other: Centered) -> Floats:
    """The same of each question, shape ``(n,)``."""
    return np.array([size([part]) for part in _less(one, other)])
