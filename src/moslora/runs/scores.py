"""Scores: the numbers of one task, computed from its answers, and their averages over several tasks."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from scipy import special  # not scipy.stats, which takes a tenth of a command's start

from moslora.runs.answers import TaskAnswers
from moslora.runs.intervals import Interval, mean_of, percent, percent_range
from moslora.runs.outcomes import log_probability, nats_per_byte, right, right_undivided
from moslora.runs.predictions import margin

MACRO = "macro average"
"""Name of the average in which every task has the same weight."""

MICRO = "micro average"
"""Name of the average in which every question has the same weight."""


class Share(NamedTuple):
    """Share of questions that are answered right, between 0 and 1."""

    value: float
    standard_error: float | None
    interval: Interval

    def __str__(self) -> str:
        """Text in percent with the interval: ``66.2 (62.0 to 70.0)``."""
        return f"{percent(self.value)} ({percent_range(self.interval)})"


@dataclass(frozen=True, kw_only=True)
class Score:
    """Numbers of one task, or of an average over tasks. Shares are between 0 and 1."""

    n: int
    accuracy: float
    standard_error: float | None = None  # of ``accuracy``, by clusters (`mean_of`); ``None`` below two clusters
    # accuracy of always giving the most frequent label of these questions; not of answers in words
    majority_class: float | None = None
    truncated: int  # questions whose prompt lost its beginning
    accuracy_per_character: float | None = None  # with its standard error, cloze only
    standard_error_per_character: float | None = None
    log_probability: float | None = None  # mean of the right option's among the options, nats; not for generate
    parse_rate: float | None = None  # share of generated texts that have an answer; only if the model generates
    # Largest change of a margin between a question alone and in its batch, over a sample of the task (an average holds
    # the largest of its tasks), in units of a deciding score; not for generate
    drift: float | None = None
    close_calls: int | None = None  # questions whose margin is below their task's drift; not for generate
    same_answer: float | None = None  # share of the most frequent answer; not of an average
    below_majority: float | None = None  # p of the test of this name; not of an average
    interval: Interval  # of ``accuracy``, 95 %: `wilson`'s, of `Mean.effective_n` questions
    interval_per_character: Interval | None = None  # of ``accuracy_per_character``, cloze only
    clusters: int | None = None  # number of clusters; ``None`` if no questions share one, and for an average

    @property
    def is_in_words(self) -> bool:
        """Whether the task is answered in words."""
        return self.majority_class is None and self.parse_rate is not None

    @property
    def plain(self) -> Share:
        """Accuracy by scores that are not divided by an option's length."""
        return Share(self.accuracy, self.standard_error, self.interval)

    @property
    def main(self) -> Share:
        """Main accuracy: that by scores per character (lm-eval's ``acc_norm``) if the task has it, else
        ``accuracy``."""
        if self.accuracy_per_character is None or self.interval_per_character is None:
            return self.plain
        return Share(self.accuracy_per_character, self.standard_error_per_character, self.interval_per_character)


@dataclass(frozen=True)
class TextScore:
    """Numbers of one set of texts, which no average includes."""

    n: int
    nats_per_byte: float  # mean over the texts
    standard_error: float | None  # by clusters (`mean_of`); ``None`` below two of them
    interval: Interval | None  # 95 %, by Student's t
    truncated: int  # texts that lost their end
    clusters: int | None = None  # number of clusters, such as articles; ``None`` if no texts share one


def score_task(answers: TaskAnswers, *, drift: float | None) -> Score:
    """Compute the numbers of one task.

    Args:
        answers: at least one question's.
        drift: largest change of a margin that batching causes (`Score.drift`); ``None`` if it was not measured.
    """
    n = len(answers.ids)
    plain = mean_of(right_undivided(answers), answers.clusters)
    numbers: dict[str, Any] = {}
    if answers.characters:
        main = mean_of(right(answers), answers.clusters)
        numbers["accuracy_per_character"] = main.value
        numbers["standard_error_per_character"] = main.error
        numbers["interval_per_character"] = main.interval_of_share
    if answers.cluster_count < n:
        numbers["clusters"] = answers.cluster_count
    if answers.scores:
        numbers["log_probability"] = mean_of(log_probability(answers)).value
    else:
        numbers["parse_rate"] = sum(map(bool, answers.answer)) / n
    if answers.are_in_words:
        numbers["same_answer"] = _share_of_most_frequent([answer for answer in answers.answer if answer], n)
    else:
        numbers["majority_class"] = _share_of_most_frequent(answers.gold, n)
        numbers["same_answer"] = _share_of_most_frequent(answers.chosen, n)
        numbers["below_majority"] = below_majority(answers)
    if drift is not None:
        numbers["close_calls"] = sum(margin(scores) < drift for scores in answers.deciding_scores)
    return Score(
        n=n,
        accuracy=plain.value,
        standard_error=plain.error,
        interval=plain.interval_of_share,
        truncated=sum(answers.truncated),
        drift=drift,
        **numbers,
    )


def _share_of_most_frequent(values: Sequence[Any], n: int) -> float:
    """Number of occurrences of the most frequent value, divided by ``n``; 0 without values."""
    return max(Counter(values).values(), default=0) / n


def below_majority(answers: TaskAnswers) -> float:
    """p of the hypothesis that always giving one label is no better: k · P(Bin(b + c, ½) ≤ b), at most 1. The second
    factor is I_½(c, b + 1), the regularised incomplete beta function.

    McNemar's exact test, one-sided, against the most frequent label: b questions that only the model has right, c that
    only the label has. The label was chosen by these questions, so p is Bonferroni's for all k labels.
    """
    counts = Counter(answers.gold)
    label = counts.most_common(1)[0][0]
    pairs = list(zip(answers.chosen, answers.gold, strict=True))
    b = sum(chosen == gold != label for chosen, gold in pairs)
    c = sum(chosen != gold == label for chosen, gold in pairs)
    return min(1.0, len(counts) * float(special.betainc(c, b + 1, 0.5)))


def score_texts(measured: TaskAnswers) -> TextScore:
    """Compute the numbers of one set of texts (at least one)."""
    mean = mean_of(nats_per_byte(measured), measured.clusters)
    interval = None
    if mean.error is not None:
        half = float(special.stdtrit(mean.clusters - 1, 0.975)) * mean.error
        interval = (mean.value - half, mean.value + half)
    clusters = mean.clusters if mean.clusters < mean.n else None
    return TextScore(mean.n, mean.value, mean.error, interval, sum(measured.truncated), clusters)


def average(scores: Sequence[Score], weights: Sequence[float]) -> Score:
    """Average of the scores over tasks, by ``weights``. Counts are added, and the drift is the largest.

    If other tasks have an accuracy per character, a task that is answered in words counts with its accuracy.
    """
    ways: dict[Callable[[Sequence[float]], float], tuple[str, ...]] = {
        partial(_weighted, weights=weights): ("majority_class", "log_probability", "parse_rate"),
        sum: ("n", "truncated", "close_calls"),
        max: ("drift",),
    }
    combined: dict[str, Any] = {}  # without what a task does not have
    for combine, names in ways.items():
        for name in names:
            values = [getattr(score, name) for score in scores]
            if None not in values:
                combined[name] = combine(values)
    plain = _average_share([score.plain for score in scores], weights)
    if any(score.accuracy_per_character is not None for score in scores):
        main = _average_share([score.main for score in scores], weights)
        combined["accuracy_per_character"] = main.value
        combined["standard_error_per_character"] = main.standard_error
        combined["interval_per_character"] = main.interval
    return Score(accuracy=plain.value, standard_error=plain.standard_error, interval=plain.interval, **combined)


def _average_share(shares: Sequence[Share], weights: Sequence[float]) -> Share:
    """Average x = Σ w x_t, with the standard error √(Σ w² se_t²), which is ``None`` if a task has none.

    The interval is x − √(Σ w² (x_t − l_t)²) to x + √(Σ w² (u_t − x_t)²) for the tasks' intervals [l_t, u_t] (Zou and
    Donner 2008, doi 10.1002/sim.3095): Wilson's for one task, and never of length 0.
    """
    value = _weighted([share.value for share in shares], weights)
    errors = [share.standard_error for share in shares if share.standard_error is not None]
    below = _root_of_squares([share.value - share.interval[0] for share in shares], weights)
    above = _root_of_squares([share.interval[1] - share.value for share in shares], weights)
    error = _root_of_squares(errors, weights) if len(errors) == len(shares) else None
    return Share(value, error, (value - below, value + above))


def _weighted(values: Sequence[float], weights: Sequence[float]) -> float:
    """Σ w x."""
    return math.fsum(w * x for w, x in zip(weights, values, strict=True))


def _root_of_squares(values: Sequence[float], weights: Sequence[float]) -> float:
    """√(Σ w² x²)."""
    return math.sqrt(math.fsum((w * x) * (w * x) for w, x in zip(weights, values, strict=True)))
