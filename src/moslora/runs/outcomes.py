"""Outcomes: the numbers of a question that can be compared. A new outcome needs only an entry of :data:`OUTCOMES`."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import AfterValidator

from moslora.runs.answers import TaskAnswers

Column = tuple[float, ...]
"""One number for each question, or text, of a task."""


def right_undivided(answers: TaskAnswers) -> Column:
    """1 for each right answer by undivided scores (cloze: lm-eval's ``acc``), by the option that a generated text
    names, or by accepted answers (open-ended questions: lm-eval's ``exact_match``).

    The outcome ``accuracy`` is computed by `right`, which may divide the scores.
    """
    return _of_right(answers, answers.prediction)


def right(answers: TaskAnswers) -> Column:
    """1 for each answer that is right by the protocol's main metric: cloze divides a score by its option's characters
    (lm-eval's ``acc_norm``)."""
    return _of_right(answers, answers.chosen)


def _of_right(answers: TaskAnswers, positions: Sequence[int | None]) -> Column:
    if answers.are_in_words:
        return tuple(float(position is not None) for position in positions)
    return tuple(float(position == gold) for position, gold in zip(positions, answers.gold, strict=True))


def log_probability(answers: TaskAnswers) -> Column:
    """s[gold] − log Σ exp(s) in nats, s the deciding scores (cloze: per character): the right option's log-probability
    among the options."""
    return _log_softmax_of_right(answers.deciding_scores, answers.gold)


def log_probability_summed(answers: TaskAnswers) -> Column:
    """s[gold] − log Σ exp(s) in nats, with s the summed log-probabilities of the options' texts, not per character."""
    return _log_softmax_of_right(answers.scores, answers.gold)


def _log_softmax_of_right(scores: Sequence[Sequence[float]], gold: Sequence[int]) -> Column:
    """s[gold] − log Σ exp(s) for each question, from the scores of its options and the position of the right one."""
    return tuple(log_softmax(row)[position] for row, position in zip(scores, gold, strict=True))


def log_softmax(scores: Sequence[float]) -> list[float]:
    """s − log Σ exp(s)."""
    best = max(scores)
    log_sum = math.log(sum(math.exp(score - best) for score in scores))
    return [score - best - log_sum for score in scores]


def brier(answers: TaskAnswers) -> Column:
    """Brier score of the options, Σ_j (p_j − y_j)²: p the softmax of the deciding scores, y 1 for the right option and
    else 0. Between 0 and 2; lower is better (Brier 1950)."""
    numbers = []
    for scores, gold in zip(answers.deciding_scores, answers.gold, strict=True):
        p = [math.exp(log_p) for log_p in log_softmax(scores)]
        numbers.append(sum(each * each for each in p) - 2 * p[gold] + 1)
    return tuple(numbers)


def nats_per_byte(answers: TaskAnswers) -> Column:
    """−log p of a text / its bytes in UTF-8."""
    pairs = zip(answers.scores, answers.bytes, strict=True)
    return tuple(-scores[0] / count for scores, count in pairs)


@dataclass(frozen=True)
class Outcome:
    """Kind of number that a question or text has: how it is computed and written, and which difference matters.

    Attributes:
        name: its name in recipes, options and tables.
        title: title of its column in a table.
        unit: unit of its numbers times ``factor``.
        factor: 100 for a share in percent.
        digits: decimals of one run's mean; a difference has one more.
        fine: decimals of a mean over seeds, and of a difference in a sentence.
        margin: a smaller difference, in ``unit``, does not matter; 0 if not known.
        of: function that computes it from the answers of a task; ``None`` for a number of a log or of a run.
        of_texts: whether texts have it instead of questions.
        of_runs: whether a whole run has it instead of questions.
        binary: whether it is 0 or 1.
        scored: whether it needs the options' scores, which ``generate`` does not have.
        per_character: whether only a protocol that divides scores by characters has it.
        direction: 1 if more is better, -1 if less is; 0 if not known, as for numbers of a log.
        always_shown: whether tables show it without being asked.
        says: sentences for a rise and a fall against another arm, with ``{size}``, ``{before}`` and ``{questions}``.
    """

    name: str
    title: str
    unit: str
    margin: float = 0
    factor: float = 1
    digits: int = 4
    fine: int = 4
    of: Callable[[TaskAnswers], Column] | None = None
    of_texts: bool = False
    of_runs: bool = False
    binary: bool = False
    scored: bool = False
    per_character: bool = False
    direction: int = 0
    always_shown: bool = False
    says: tuple[str, str] = ("is {size} above {before} over {questions}", "is {size} BELOW {before} over {questions}")

    def level(self, value: float) -> str:
        """Text of a mean: 66.2."""
        return f"{self.factor * value:.{self.digits}f}"

    def change(self, value: float) -> str:
        """Text of a difference, with one more decimal: +0.31."""
        return f"{self.factor * value:+.{self.digits + 1}f}"

    def size(self, value: float) -> str:
        """Text of a difference in a sentence, with a minus but without a plus: 0.0310."""
        return f"{self.factor * value:.{self.fine}f}"

    def amount(self, value: float) -> str:
        """Text of a difference without its sign, with the unit: 0.0310 nats."""
        return f"{self.size(abs(value))} {self.unit}"

    def side(self, value: float) -> str:
        """Word for the sign of a difference: better or worse, or higher or lower if the direction is not known."""
        if not self.direction:
            return "higher" if value > 0 else "lower"
        return "better" if (value > 0) == (self.direction > 0) else "worse"

    def range(self, interval: tuple[float, float]) -> str:
        """Text of an interval of a difference: +0.11 to +0.51."""
        return f"{self.change(interval[0])} to {self.change(interval[1])}"


OUTCOMES: Mapping[str, Outcome] = {
    outcome.name: outcome
    for outcome in (
        Outcome(
            "log_probability",
            title="log p of the right option",
            unit="nats",
            digits=3,
            margin=0.01,  # nats: one percent of the right option's probability
            of=log_probability,
            scored=True,
            direction=1,
            always_shown=True,
            says=(
                "predicts the right option of {questions} {size} better than {before}",
                "predicts the right option of {questions} {size} WORSE than {before}",
            ),
        ),
        Outcome(
            "accuracy",
            title="accuracy, %",
            unit="points",
            factor=100,
            digits=1,
            fine=1,
            margin=0.5,
            of=right,
            binary=True,
            direction=1,
            always_shown=True,
            says=(
                "answers {size} more of {questions} right than {before}",
                "answers {size} FEWER of {questions} right than {before}",
            ),
        ),
        Outcome(
            "nats_per_byte",
            title="nats per byte",
            unit="nats per byte",
            margin=0.005,  # nats: 2 percent of the perplexity of a token of four bytes
            of=nats_per_byte,
            of_texts=True,
            direction=-1,
            always_shown=True,
            says=(
                "predicts {questions} {size} WORSE than {before}",
                "predicts {questions} {size} better than {before}",
            ),
        ),
        Outcome(
            "log_probability_summed",
            title="log p of the right option, summed",
            unit="nats",
            digits=3,
            margin=0.1,  # nats: as options have ten characters and more, ten times that of one divided by them
            of=log_probability_summed,
            scored=True,
            per_character=True,
            direction=1,
            says=(
                "predicts the right option of {questions} {size} (summed) better than {before}",
                "predicts the right option of {questions} {size} (summed) WORSE than {before}",
            ),
        ),
        Outcome(
            "brier",
            title="Brier score",
            unit="of the Brier score",
            margin=0.005,
            of=brier,
            scored=True,
            direction=-1,
            says=("is {size} WORSE than {before} over {questions}", "is {size} better than {before} over {questions}"),
        ),
        Outcome(
            "validation_loss",
            title="validation loss",
            unit="nats per token",
            margin=0.01,
            of_runs=True,
            direction=-1,
            says=(
                "predicts held-out rows {size} WORSE than {before}",
                "predicts held-out rows {size} better than {before}",
            ),
        ),
    )
}


def _known(name: str) -> str:
    if name not in OUTCOMES:
        raise ValueError(f"must be one of {', '.join(OUTCOMES)}")
    return name


OutcomeName = Annotated[str, AfterValidator(_known)]
"""A key of :data:`OUTCOMES`, for pydantic."""


def with_outcomes(answers: TaskAnswers) -> TaskAnswers:
    """Return the answers with every outcome that can be computed from them; outcomes that they have are kept."""
    outcomes = {}
    for name, outcome in OUTCOMES.items():
        if outcome.of is not None and _has(answers, outcome):
            outcomes[name] = outcome.of(answers)
    return replace(answers, outcomes={**outcomes, **answers.outcomes})


def _has(answers: TaskAnswers, outcome: Outcome) -> bool:
    """Whether the answers have the columns that an outcome is computed from."""
    if outcome.of_texts:
        return answers.are_texts
    if outcome.per_character and not answers.characters:
        return False
    if outcome.scored:
        return bool(answers.gold and answers.scores)
    return answers.are_in_words or bool(answers.gold and answers.chosen)


DEFAULTS = ("accuracy", "acc_norm", "acc", "exact_match", "score", "nats_per_byte")
"""Outcomes in the order in which the default is chosen: the first that all runs have."""


def measure(outcome: str, values: Collection[float]) -> Outcome:
    """`Outcome` of this name. A log's own outcome is in points if all its values are 0 or 1; other values are shown as
    they are, since they may be losses or anything else."""
    if outcome in OUTCOMES:
        return OUTCOMES[outcome]
    if set(values) <= {0, 1}:
        accuracy = replace(OUTCOMES["accuracy"], name=outcome, title=f"{outcome}, %")
        if outcome in DEFAULTS:  # an accuracy under another name
            return accuracy
        return replace(accuracy, direction=0, says=Outcome.says)
    return Outcome(outcome, outcome, outcome, digits=3)
