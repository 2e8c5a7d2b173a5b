"""A model's answers, and the numbers of one task and of several."""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy import special  # not scipy.stats, which takes a tenth of a command's start

from moslora.errors import MosloraError
from moslora.tasks import Example


@dataclass(frozen=True)
class Prediction:
    """A model's answer to one question, or its measure of a text: a line of ``predictions.jsonl``."""

    id: str
    task: str
    gold: int  # position of the right option
    prediction: int | None  # that of the best score, the first of equals; generate: of the option named in the text
    # log-probability of each option in nats: among the options (choice), or of its tokens, summed (cloze, texts)
    scores: tuple[float, ...] = ()
    characters: tuple[int, ...] = ()  # of each option, by which cloze divides the scores
    text: str | None = None  # generate's text
    answer: str | None = None  # the label found in generate's text, or ""
    truncated: bool = False  # the prompt lost its beginning because it was too long, or a text its end
    bytes: int = 0  # of a text, its only option: those in UTF-8 that the score is of

    @classmethod
    def of(
        cls, example: Example, scores: Sequence[float], *, characters: tuple[int, ...] = (), truncated: bool
    ) -> "Prediction":
        """The option with the best score. Scores are rounded to 1e-6 nats here rather than on the way to the disk, so
        that a resumed evaluation equals an uninterrupted one."""
        if not all(map(math.isfinite, scores)):
            raise MosloraError(f"{example.id}: scores are no finite numbers, {scores}; use --dtype bfloat16 or float32")
        rounded = tuple(round(score, 6) for score in scores)
        return cls(example.id, example.task, example.gold, argmax(rounded), rounded, characters, truncated=truncated)

    @property
    def deciding_scores(self) -> tuple[float, ...]:
        """The scores behind the primary metric: per character if there are ``characters``."""
        if not self.characters:
            return self.scores
        return tuple(score / count for score, count in zip(self.scores, self.characters, strict=True))

    @property
    def chosen(self) -> int | None:
        """The position that counts, by the primary metric; ``None`` for a text without an answer."""
        return argmax(self.deciding_scores) if self.scores else self.prediction

    @property
    def margin(self) -> float:
        """The best deciding score minus the second best."""
        best, second = sorted(self.deciding_scores, reverse=True)[:2]
        return best - second

    def to_json(self) -> str:
        """One line, without fields that have their default or that others give."""
        known = {field.name: field.default for field in dataclasses.fields(self)} | _given(self.id, self.scores)
        fields = {name: value for name, value in vars(self).items() if value != known[name]}
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> "Prediction":
        """The inverse of `to_json`, with floats equal bit for bit. Lines of earlier versions have more fields."""
        values = json.loads(line)
        values |= {name: tuple(values.get(name, ())) for name in ("scores", "characters")}
        return cls(**_given(values["id"], values["scores"]) | values)


def _given(id: str, scores: Sequence[float]) -> dict[str, Any]:
    """The fields of a `Prediction` that its id and its scores give."""
    return {"task": id.partition("/")[0], **({"prediction": argmax(scores)} if scores else {})}


def argmax(values: Sequence[float]) -> int:
    """Position of the largest value, the first of equals, as in ``numpy.argmax`` and so in lm-eval."""
    return max(range(len(values)), key=values.__getitem__)


def _log_probability(prediction: Prediction) -> float:
    scores = prediction.deciding_scores
    best = max(scores)
    return scores[prediction.gold] - best - math.log(sum(math.exp(score - best) for score in scores))


METRICS: Mapping[str, Callable[[Prediction], float]] = {
    "accuracy": lambda p: float(p.prediction == p.gold),
    "accuracy_per_character": lambda p: float(p.chosen == p.gold),
    "log_probability": _log_probability,
    "nats_per_byte": lambda p: -p.scores[0] / p.bytes,
}
"""The contribution of one question to each mean.

``accuracy``: 1 if the chosen option is the right one (cloze: lm-eval's ``acc``). ``accuracy_per_character``:
the same after dividing every score by its option's characters (``acc_norm``). ``log_probability``: of the right
option among the options, s[gold] − log Σ exp(s) in nats, s the deciding scores (cloze: per character).
``nats_per_byte``: of a text.
"""


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """x̄ = Σ x / n and its standard error √(Σ (x − x̄)² / (n − 1) / n), ``None`` below two values."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (n - 1) / n)


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's score interval of a share, 95 %: the shares π with |p − π| ≤ 1.96 √(π (1 − π) / n), p = right / n.

    Unlike p ± 1.96 standard errors it holds for few questions too: 4 of 4 give 51 to 100 %.
    """
    z, p = float(special.ndtri(0.975)), right / n
    whole = 2 * (n + z**2)
    center, half = (2 * n * p + z**2) / whole, z / whole * math.sqrt(4 * n * p * (1 - p) + z**2)
    return center - half if right else 0.0, center + half if right < n else 1.0


def below_majority(predictions: Sequence[Prediction]) -> float:
    """p of the hypothesis that always giving one label is no better: k · P(Bin(b + c, ½) ≤ b), at most 1. The second
    factor is I_½(c, b + 1), the regularised incomplete beta function.

    McNemar's exact test, one-sided, against the most frequent label: b questions that only the model has right, c that
    only the label has. The label was chosen by these questions, so p is Bonferroni's for all k labels.
    """
    counts = Counter(p.gold for p in predictions)
    label = counts.most_common(1)[0][0]
    b = sum(p.chosen == p.gold != label for p in predictions)
    c = sum(p.chosen != p.gold == label for p in predictions)
    return min(1.0, len(counts) * float(special.betainc(c, b + 1, 0.5)))


@dataclass(frozen=True, kw_only=True)
class Score:
    """The numbers of one task, or of an average over tasks. Shares are between 0 and 1."""

    n: int
    accuracy: float
    standard_error: float | None = None  # of ``accuracy``: sample standard deviation / √n; ``None`` below two questions
    majority_class: float  # accuracy of always giving the most frequent label of these questions
    truncated: int  # questions whose prompt lost its beginning
    accuracy_per_character: float | None = None  # with its standard error, cloze only
    standard_error_per_character: float | None = None
    log_probability: float | None = None  # mean of the right option's among the options, nats; not for generate
    parse_rate: float | None = None  # share of generated texts in which an answer was found; generate only
    # Largest change of a margin between a question alone and in its batch, over a sample of the task (an average holds
    # the largest of its tasks), in units of a deciding score; not for generate
    drift: float | None = None
    close_calls: int | None = None  # questions whose margin is below their task's drift; not for generate
    same_answer: float | None = None  # share of the most frequent answer, by its position; not of an average
    below_majority: float | None = None  # p of the test of this name; not of an average
    interval: tuple[float, float] | None = None  # of ``accuracy``, 95 %: `wilson`'s; ``None`` in old files
    interval_per_character: tuple[float, float] | None = None  # the same, cloze only

    def value(self, metric: str) -> tuple[float, tuple[float, float] | None]:
        """An accuracy with its interval."""
        return getattr(self, metric), getattr(self, metric.replace("accuracy", "interval"))


def score_task(predictions: Sequence[Prediction], *, drift: float | None) -> Score:
    """The numbers of one task from its predictions (at least one) and its drift."""
    n, first = len(predictions), predictions[0]

    def mean(metric: str) -> tuple[float, float | None]:
        return mean_and_error([METRICS[metric](p) for p in predictions])

    accuracy, error = mean("accuracy")
    per_character, its_error = mean("accuracy_per_character") if first.characters else (None, None)
    return Score(
        n=n,
        accuracy=accuracy,
        standard_error=error,
        majority_class=max(Counter(p.gold for p in predictions).values()) / n,
        truncated=sum(p.truncated for p in predictions),
        accuracy_per_character=per_character,
        standard_error_per_character=its_error,
        log_probability=mean("log_probability")[0] if first.scores else None,
        parse_rate=None if first.scores else sum(bool(p.answer) for p in predictions) / n,
        drift=drift,
        close_calls=None if drift is None else sum(p.margin < drift for p in predictions),
        same_answer=max(Counter(p.chosen for p in predictions).values()) / n,
        below_majority=below_majority(predictions),
        interval=wilson(round(accuracy * n), n),
        interval_per_character=None if per_character is None else wilson(round(per_character * n), n),
    )


def average(scores: Sequence[Score], weights: Sequence[float]) -> Score:
    """x = Σ w x_t over tasks, with the standard error √(Σ w² se_t²); counts are added.

    The interval is x − √(Σ w² (x_t − l_t)²) to x + √(Σ w² (u_t − x_t)²) for the tasks' intervals [l_t, u_t] (Zou and
    Donner 2008, doi 10.1002/sim.3095): Wilson's for one task, and never of length 0.
    """

    def over(combine: Callable[[list[float]], float], *names: str) -> dict[str, Any]:  # None if a task has none
        columns = {name: [getattr(score, name) for score in scores] for name in names}
        return {name: None if None in values else combine(values) for name, values in columns.items()}

    def mean(values: Sequence[float]) -> float:
        return math.fsum(w * x for w, x in zip(weights, values, strict=True))

    def error(values: list[float]) -> float:
        return math.sqrt(math.fsum((w * x) * (w * x) for w, x in zip(weights, values, strict=True)))

    def interval(metric: str) -> tuple[float, float] | None:
        values, ends = zip(*(score.value(metric) for score in scores), strict=True)
        if None in ends:
            return None
        below, above = (error([x - end[side] for x, end in zip(values, ends, strict=True)]) for side in (0, 1))
        return mean(values) - below, mean(values) + above

    return Score(
        interval=interval("accuracy"),
        interval_per_character=interval("accuracy_per_character"),
        **over(mean, "accuracy", "majority_class", "accuracy_per_character", "log_probability", "parse_rate"),
        **over(error, "standard_error", "standard_error_per_character"),
        **over(sum, "n", "truncated", "close_calls"),
        **over(max, "drift"),
    )


def macro(scores: Sequence[Score]) -> Score:
    """Every task the same weight."""
    return average(scores, [1 / len(scores)] * len(scores))


NONE = "–"
"""A number in a table that there is not."""


def percent(share: float | None) -> str:
    """0.6615 as ``66.2``."""
    return NONE if share is None else f"{100 * share:.1f}"


def percent_range(interval: tuple[float, float] | None) -> str:
    """(0.6198, 0.7003) as ``62.0 to 70.0``."""
    return NONE if interval is None else " to ".join(map(percent, interval))
