"""The numbers of a question that can be compared. A new one is an entry here, and a name in `moslora.choices`."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Measure:
    """How an outcome is written: times ``factor``, with so many ``digits`` (in a mean over seeds ``fine``); a
    difference below ``margin`` of this ``unit`` does not matter; 0 if nobody knows which.

    Attributes:
        metric: of a prediction, a key of `METRICS`; ``None`` for the protocol's main one.
        of_texts: texts have it, and questions do not; lower is better.
        binary: it is 0 or 1.
        scored: it is read from the options' scores, which ``generate`` does not have.
        says: what a rise and a fall say of one arm against another.
    """

    title: str
    unit: str
    factor: float
    digits: int
    fine: int
    margin: float
    metric: str | None = None
    of_texts: bool = False
    binary: bool = False
    scored: bool = False
    says: tuple[str, str] = ("is above", "is BELOW")

    def level(self, value: float) -> str:
        return f"{self.factor * value:.{self.digits}f}"

    def change(self, value: float) -> str:
        """A difference, with one more digit: +0.31."""
        return f"{self.factor * value:+.{self.digits + 1}f}"

    def range(self, interval: tuple[float, float]) -> str:
        return f"{self.change(interval[0])} to {self.change(interval[1])}"


OUTCOMES: Mapping[str, Measure] = {
    # log softmax(s)[right option], s the scores behind the main metric (cloze: the options' log-probabilities per
    # character). 0.01 nats is one percent of the right option's probability.
    "log_probability": Measure("log p of the right option", "nats", 1, 3, 4, 0.01, "log_probability", scored=True),
    # 1 if the answer is right, else 0, by the protocol's main metric (cloze: per character).
    "accuracy": Measure("accuracy, %", "points", 100, 1, 1, 0.5, binary=True),
    # −log p of a text / its bytes in UTF-8. 0.005 nats are 2 percent of the perplexity of a token of four bytes.
    "nats_per_byte": Measure(
        *("nats per byte", "nats per byte", 1, 4, 4, 0.005, "nats_per_byte"),
        of_texts=True,
        says=("predicts these texts WORSE than", "predicts these texts better than"),
    ),
}
DEFAULTS = "accuracy", "acc_norm", "acc", "exact_match", "score", "nats_per_byte"
"""The first of these that all have is compared by default."""


def measure(outcome: str, values: NDArray[np.float64]) -> Measure:
    """How an outcome with these values is written: a log's in points if they are shares."""
    if outcome in OUTCOMES:
        return OUTCOMES[outcome]
    if values.min() < 0 or values.max() > 1:
        return Measure(outcome, outcome, 1, 3, 4, 0)
    return Measure(f"{outcome}, %", "points", 100, 1, 1, 0.5, binary=bool(np.isin(values, (0, 1)).all()))
