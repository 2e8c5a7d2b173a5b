"""The questions that a model answers unlike its base."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scipy.special import softmax

from moslora.data.sources import data_hash, load_examples
from moslora.errors import MosloraError
from moslora.evaluation import METRICS, Prediction, Settings
from moslora.tasks import Example, Questions


class Option(NamedTuple):
    """An option with its probability before and after."""

    text: str
    right: bool
    before: float
    after: float
    chosen_before: bool
    chosen_after: bool


class Changed(NamedTuple):
    """A question, and the change of the right option's log-probability in nats."""

    id: str
    question: str
    change: float
    options: list[Option]


def most_changed(
    before: Sequence[Prediction], after: Sequence[Prediction], examples: Mapping[str, Example], *, most: int
) -> tuple[list[Changed], list[Changed]]:
    """The questions that gained most and those that lost most, at most ``most`` of each.

    Left out are questions that only one of the two answered, generated answers, which have no probabilities, and
    questions that ``examples`` does not have as they were asked.
    """
    known, log_probability = {p.id: p for p in before}, METRICS["log_probability"]
    changes = []
    for p in after:
        example = examples.get(p.id)
        if p.id in known and example and (example.gold, len(example.choices)) == (p.gold, len(p.scores)):
            changes.append((log_probability(p) - log_probability(known[p.id]), known[p.id], p, example))
    changes.sort(key=lambda change: -change[0])
    gained = [_changed(*change) for change in changes[:most] if change[0] > 0]
    lost = [_changed(*change) for change in changes[::-1][:most] if change[0] < 0]
    return gained, lost


def _changed(change: float, before: Prediction, after: Prediction, example: Example) -> Changed:
    context = f"{example.context} " if example.context and example.task != "boolq" else ""
    ones, others = (softmax(p.deciding_scores).tolist() for p in (before, after))
    options = [
        Option(text, n == after.gold, ones[n], others[n], before.chosen == n, after.chosen == n)
        for n, text in enumerate(example.choices)
    ]
    return Changed(after.id, f"{context}{example.question}", change, options)


def texts(questions: Questions, asked: Settings) -> dict[str, Example]:
    """Id -> question, for the tasks whose rows are here, and are those that were asked."""
    found, source = dict[str, Example](), asked.metadata.get("source", questions.source)
    for task in questions.tasks:
        try:
            rows = load_examples(task, "test", source=source)
        except MosloraError:
            continue
        if data_hash(rows) == asked.data.get(task.name):
            found |= {example.id: example for example in rows}
    return found
