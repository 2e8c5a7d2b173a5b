"""The numbers of one task, and their averages over several."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from scipy import special  # not scipy.stats, which takes a tenth of a command's start

from moslora.evaluation.intervals import Interval, mean_of
from moslora.runs.answers import TaskAnswers
from moslora.runs.outcomes import log_probability, right, right_undivided
from moslora.runs.predictions import margin

PER_CHARACTER = "_per_character"
"""At the end of the names of numbers that only cloze has."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """The numbers of one task, or of an average over tasks. Shares are between 0 and 1."""

    n: int
    accuracy: float
    standard_error: float | None = None  # of ``accuracy``, by clusters (`mean_of`); ``None`` below two of them
    # accuracy of always giving the most frequent label of these questions; not of answers in words
    majority_class: float | None = None
    truncated: int  # questions whose prompt lost its beginning
    accuracy_per_character: float | None = None  # with its standard error, cloze only
    standard_error_per_character: float | None = None
    log_probability: float | None = None  # mean of the right option's among the options, nats; not for generate
    parse_rate: float | None = None  # share of written texts in which an answer was found; only where one is written
    # Largest change of a margin between a question alone and in its batch, over a sample of the task (an average holds
    # the largest of its tasks), in units of a deciding score; not for generate
    drift: float | None = None
    close_calls: int | None = None  # questions whose margin is below their task's drift; not for generate
    same_answer: float | None = None  # share of the most frequent answer; not of an average
    below_majority: float | None = None  # p of the test of this name; not of an average
    interval: Interval | None = None  # of ``accuracy``, 95 %: `wilson`'s, of `Mean.effective_n` questions
    interval_per_character: Interval | None = None  # the same, cloze only
    clusters: int | None = None  # that the questions are in; ``None`` if each is alone, and of an average

    @property
    def is_in_words(self) -> bool:
        """Whether it is of a task that is answered in words."""
        return self.majority_class is None and self.parse_rate is not None

    def value(self, metric: str) -> tuple[float, Interval | None]:
        """An accuracy with its interval; `accuracy` itself of a task that does not have the other."""
        return self.number(metric), self.number(metric.replace("accuracy", "interval"))

    def number(self, name: str) -> Any:
        """A field; where a task has no number per character, such as one that is answered in words, the plain one."""
        value = getattr(self, name)
        if value is None:
            return getattr(self, name.removesuffix(PER_CHARACTER))
        return value


def score_task(answers: TaskAnswers, *, drift: float | None) -> Score:
    """The numbers of one task from its answers (at least one) and its drift."""
    n = len(answers.ids)
    ways = {"": right_undivided, PER_CHARACTER: right} if answers.characters else {"": right_undivided}
    found: dict[str, Any] = {}
    for suffix, way in ways.items():
        mean = mean_of(way(answers), answers.clusters)
        found[f"accuracy{suffix}"] = mean.value
        found[f"standard_error{suffix}"] = mean.error
        found[f"interval{suffix}"] = mean.interval_of_share
    if answers.cluster_count < n:
        found["clusters"] = answers.cluster_count
    if answers.scores:
        found["log_probability"] = mean_of(log_probability(answers)).value
    else:
        found["parse_rate"] = sum(map(bool, answers.answer)) / n
    if answers.are_in_words:
        found["same_answer"] = _share_of_most_frequent([answer for answer in answers.answer if answer], n)
    else:
        found["majority_class"] = _share_of_most_frequent(answers.gold, n)
        found["same_answer"] = _share_of_most_frequent(answers.chosen, n)
        found["below_majority"] = below_majority(answers)
    if drift is not None:
        found["close_calls"] = sum(margin(scores) < drift for scores in answers.deciding_scores)
    return Score(n=n, truncated=sum(answers.truncated), drift=drift, **found)


def _share_of_most_frequent(values: Sequence[Any], n: int) -> float:
    """How many of ``n`` have the most frequent of these values; 0 without any."""
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


def average(scores: Sequence[Score], weights: Sequence[float]) -> Score:
    """x = Σ w x_t over tasks, with the standard error √(Σ w² se_t²); counts are added.

    The interval is x − √(Σ w² (x_t − l_t)²) to x + √(Σ w² (u_t − x_t)²) for the tasks' intervals [l_t, u_t] (Zou and
    Donner 2008, doi 10.1002/sim.3095): Wilson's for one task, and never of length 0. Beside tasks with an accuracy per
    character, one that is answered in words is averaged by its accuracy.
    """

    def mean(values: Sequence[float]) -> float:
        return math.fsum(w * x for w, x in zip(weights, values, strict=True))

    def error(values: Sequence[float]) -> float:
        return math.sqrt(math.fsum((w * x) * (w * x) for w, x in zip(weights, values, strict=True)))

    ways: dict[Callable[[Sequence[float]], float], tuple[str, ...]] = {
        mean: ("accuracy", "majority_class", "accuracy_per_character", "log_probability", "parse_rate"),
        error: ("standard_error", "standard_error_per_character"),
        sum: ("n", "truncated", "close_calls"),
        max: ("drift",),
    }
    of_characters = any(score.accuracy_per_character is not None for score in scores)
    combined: dict[str, Any] = {}  # without what a task does not have
    for combine, names in ways.items():
        for name in names:
            values = [score.number(name) for score in scores]
            if None not in values and (of_characters or not name.endswith(PER_CHARACTER)):
                combined[name] = combine(values)
    for metric in ("accuracy", "accuracy_per_character")[: 1 + of_characters]:
        interval = metric.replace("accuracy", "interval")
        values = [score.number(metric) for score in scores]
        lows, highs = zip(*(score.number(interval) for score in scores), strict=True)
        below, above = (error([x - end for x, end in zip(values, ends, strict=True)]) for ends in (lows, highs))
        combined[interval] = (combined[metric] - below, combined[metric] + above)
    return Score(**combined)
