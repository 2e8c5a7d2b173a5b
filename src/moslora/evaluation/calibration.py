"""Calibration: is a model as sure of its answers as it is right?

    p = softmax(s / T)                                        s the scores of a question's options, T = 1 as they are
    ECE = Σ_b n_b / n · |accuracy_b − confidence_b|           confidence = max_j p_j, b one of `BINS` of equal width
    T* = argmin_T −Σ log p[gold]                              temperature scaling

(Guo et al. 2017, arXiv 1706.04599.) The error with T* is cross-fitted: each half of the questions has the T* of the
other half.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special  # not scipy.optimize, which takes a tenth of a command's start

from moslora.runs.answers import TaskAnswers, order_key

BINS = 15

FEWEST = 100
"""Questions below which the error is mostly chance."""

WIDEST = 1e6
"""Highest temperature that is tried, and its inverse the lowest."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """How sure a model is of its answers, and how right it is, over all its questions with options.

    Attributes:
        n: number of questions.
        error: expected calibration error.
        confidence: mean probability of the option that the model prefers.
        accuracy: share of questions of which that option is right.
        temperature: T*; ``None`` if no temperature is best: the model does no better than chance, or is always right.
        error_after: expected calibration error with the temperature of the other half; ``None`` without one.
    """

    n: int
    error: float
    confidence: float
    accuracy: float
    temperature: float | None = None
    error_after: float | None = None


def calibration(tasks: Iterable[TaskAnswers]) -> Calibration | None:
    """The calibration over all questions of these tasks whose options have scores: those that decide, so under cloze
    per character. ``None`` for fewer than `FEWEST` such questions."""
    rows: list[tuple[bytes, tuple[float, ...], int]] = []
    for answers in tasks:
        if answers.gold and answers.scores:
            keys = [order_key(id) for id in answers.ids]
            rows += zip(keys, answers.deciding_scores, answers.gold, strict=True)
    if len(rows) < FEWEST:
        return None
    rows.sort()  # in a random order, so that every other question is a random half
    scores = _padded([scores for _, scores, _ in rows])
    gold = np.array([gold for _, _, gold in rows])
    probabilities = special.softmax(scores, axis=1)
    return Calibration(
        n=len(rows),
        error=calibration_error(probabilities, gold),
        confidence=float(probabilities.max(axis=1).mean()),
        accuracy=float((probabilities.argmax(axis=1) == gold).mean()),
        temperature=best_temperature(scores, gold),
        error_after=_cross_fitted_error(scores, gold),
    )


def _padded(scores: list[tuple[float, ...]]) -> Floats:
    """The scores as one table, −∞ for options that a question does not have; shape ``(n, most options)``."""
    table = np.full((len(scores), max(len(row) for row in scores)), -np.inf)
    for place, row in enumerate(scores):
        table[place, : len(row)] = row
    return table


def calibration_error(probabilities: Floats, gold: NDArray[np.int_]) -> float:
    """The expected calibration error of options' probabilities, shape ``(n, k)``; a bin holds its lower end, and the
    last one also 1."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == gold
    edges = np.linspace(0, 1, BINS + 1)
    bins = np.minimum(np.digitize(confidence, edges) - 1, BINS - 1)
    excess = np.bincount(bins, confidence - right, minlength=BINS)  # n_b · (confidence_b − accuracy_b)
    return float(np.abs(excess).sum() / len(gold))


def best_temperature(scores: Floats, gold: NDArray[np.int_]) -> float | None:
    """T*, by bisection in log 1/T: in 1/T the loss is convex, with the slope Σ (E_p[s] − s[gold])."""
    finite = np.where(np.isfinite(scores), scores, 0)
    of_gold = scores[np.arange(len(gold)), gold]

    def slope(inverse: float) -> float:
        expected = (special.softmax(inverse * scores, axis=1) * finite).sum(axis=1)
        return float((expected - of_gold).sum())

    low = -math.log(WIDEST)
    high = math.log(WIDEST)
    if slope(math.exp(low)) >= 0 or slope(math.exp(high)) <= 0:
        return None
    for _ in range(60):
        middle = (low + high) / 2
        if slope(math.exp(middle)) < 0:
            low = middle
        else:
            high = middle
    return math.exp(-(low + high) / 2)


def _cross_fitted_error(scores: Floats, gold: NDArray[np.int_]) -> float | None:
    """The expected calibration error where each half of the questions has the temperature of the other."""
    halves = [np.arange(first, len(gold), 2) for first in (0, 1)]
    mended = np.empty_like(scores)
    for half, other in (halves, halves[::-1]):
        temperature = best_temperature(scores[other], gold[other])
        if temperature is None:
            return None
        mended[half] = special.softmax(scores[half] / temperature, axis=1)
    return calibration_error(mended, gold)
