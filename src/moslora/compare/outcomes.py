"""The numbers of a question that can be compared. A new one is an entry here, and a name in `moslora.choices`."""

from collections.abc import Callable
from dataclasses import dataclass

from moslora.choices import Outcome
from moslora.evaluation import METRICS, Prediction, Settings


@dataclass(frozen=True)
class Measure:
    """How an outcome is read from a prediction, and how it is written: times ``factor``, with so many ``digits`` (in
    a mean over seeds ``fine``); a difference below ``margin`` of this ``unit`` does not matter.

    Attributes:
        of: the number of a question.
        binary: it is 0 or 1.
        scored: it is read from the options' scores, which ``generate`` does not have.
    """

    of: Callable[[Prediction, Settings], float]
    title: str
    unit: str
    factor: float
    digits: int
    fine: int
    margin: float
    binary: bool = False
    scored: bool = False

    def level(self, value: float) -> str:
        return f"{self.factor * value:.{self.digits}f}"

    def change(self, value: float) -> str:
        """A difference, with one more digit: +0.31."""
        return f"{self.factor * value:+.{self.digits + 1}f}"

    def range(self, interval: tuple[float, float]) -> str:
        return f"{self.change(interval[0])} to {self.change(interval[1])}"


OUTCOMES: dict[Outcome, Measure] = {
    # log softmax(s)[right option], s the scores behind the main metric (cloze: the options' log-probabilities per
    # character). 0.01 nats is one percent of the right option's probability.
    "log_probability": Measure(
        lambda p, _: METRICS["log_probability"](p), "log p of the right option", "nats", 1, 3, 4, 0.01, scored=True
    ),
    # 1 if the answer is right, else 0, by the protocol's main metric (cloze: per character).
    "accuracy": Measure(lambda p, s: METRICS[s.primary](p), "accuracy, %", "points", 100, 1, 1, 0.5, binary=True),
}
