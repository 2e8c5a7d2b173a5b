"""The numbers of one task, and averages over tasks, from predictions."""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moslora.evaluation.predictions import METRICS, Prediction, mean_and_error


@dataclass(frozen=True)
class Score:
    """The numbers of one task, or of an average over tasks. Shares are between 0 and 1.

    Attributes:
        n: questions.
        accuracy: share of right answers.
        standard_error: of ``accuracy``: sample standard deviation / √n; ``None`` below two questions.
        majority_class: accuracy of always giving the most frequent label of these questions.
        truncated: questions whose prompt lost its beginning.
        accuracy_per_character: cloze only.
        standard_error_per_character: cloze only.
        log_probability: mean of the right option's log-probability among the options, nats; not for generate.
        parse_rate: share of generated texts in which an answer was found; generate only.
        drift: largest change of a margin between a question alone and in its batch, over a sample of the task
            (an average holds the largest of its tasks), in units of a deciding score; not for generate.
        close_calls: questions whose margin is below their task's drift; not for generate.
    """

    n: int
    accuracy: float
    standard_error: float | None
    majority_class: float
    truncated: int
    accuracy_per_character: float | None = None
    standard_error_per_character: float | None = None
    log_probability: float | None = None
    parse_rate: float | None = None
    drift: float | None = None
    close_calls: int | None = None


def score_task(predictions: Sequence[Prediction], *, drift: float | None) -> Score:
    """The numbers of one task from its predictions (at least one) and its drift."""
    n = len(predictions)
    accuracy, error = mean_and_error([METRICS["accuracy"](p) for p in predictions])
    score = Score(
        n=n,
        accuracy=accuracy,
        standard_error=error,
        majority_class=max(Counter(p.gold for p in predictions).values()) / n,
        truncated=sum(p.truncated for p in predictions),
    )
    if not predictions[0].scores:
        return dataclasses.replace(score, parse_rate=sum(bool(p.answer) for p in predictions) / n)
    score = dataclasses.replace(
        score,
        log_probability=mean_and_error([METRICS["log_probability"](p) for p in predictions])[0],
        drift=drift,
        close_calls=None if drift is None else sum(p.margin < drift for p in predictions),
    )
    if not predictions[0].characters:
        return score
    accuracy, error = mean_and_error([METRICS["accuracy_per_character"](p) for p in predictions])
    return dataclasses.replace(score, accuracy_per_character=accuracy, standard_error_per_character=error)


def average(scores: Sequence[Score], weights: Sequence[float]) -> Score:
    """x = Σ w x_t over tasks, with the standard error √(Σ w² se_t²); counts are added.

    Macro: w = 1 / tasks. Micro: w = n_t / Σ n, every question the same, the tasks as strata.
    """

    def mean(name: str) -> Any:  # a float, or None where the field may be None
        values = [getattr(score, name) for score in scores]
        return None if None in values else math.fsum(w * x for w, x in zip(weights, values, strict=True))

    def error(name: str) -> float | None:
        values = [getattr(score, name) for score in scores]
        if None in values:
            return None
        return math.sqrt(math.fsum((w * x) ** 2 for w, x in zip(weights, values, strict=True)))

    drifts = [score.drift for score in scores if score.drift is not None]
    close_calls = [score.close_calls for score in scores if score.close_calls is not None]
    return Score(
        n=sum(score.n for score in scores),
        accuracy=mean("accuracy"),
        standard_error=error("standard_error"),
        majority_class=mean("majority_class"),
        truncated=sum(score.truncated for score in scores),
        accuracy_per_character=mean("accuracy_per_character"),
        standard_error_per_character=error("standard_error_per_character"),
        log_probability=mean("log_probability"),
        parse_rate=mean("parse_rate"),
        drift=max(drifts, default=None),
        close_calls=sum(close_calls) if close_calls else None,
    )


def macro(scores: Sequence[Score]) -> Score:
    """Every task the same weight."""
    return average(scores, [1 / len(scores)] * len(scores))


def micro(scores: Sequence[Score]) -> Score:
    """Every question the same weight."""
    total = sum(score.n for score in scores)
    return average(scores, [score.n / total for score in scores])


def percent(share: float | None, error: float | None = None) -> str:
    """0.6615 as ``66.2``, with an error of 0.021 as ``66.2 ± 2.1``."""
    if share is None:
        return "–"
    return f"{100 * share:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")
