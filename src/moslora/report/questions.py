"""The questions that a model answers unlike its base."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scipy.special import softmax

from moslora.data.sources import load_examples
from moslora.errors import MosloraError
from moslora.evaluation import METRICS, Prediction
from moslora.tasks import Example, Questions


class Option(NamedTuple):
    """An option with its probability before and after; ``None`` under generate."""

    text: str
    right: bool
    before: float | None
    after: float | None
    chosen_before: bool
    chosen_after: bool


class Changed(NamedTuple):
    """A question, and the change of the right option's log-probability in nats (under generate of being right)."""

    id: str
    question: str
    change: float
    options: list[Option]


def most_changed(
    before: Sequence[Prediction], after: Sequence[Prediction], examples: Mapping[str, Example], *, most: int
) -> tuple[list[Changed], list[Changed]]:
    """The questions that gained most and those that lost most, at most ``most`` of each.

    Questions that only one of the two answered are left out; ``examples`` has their texts, as far as they are known.
    """
    known = {p.id: p for p in before}
    metric = METRICS["log_probability" if all(p.scores for p in (*before, *after)) else "accuracy"]
    changes = [(metric(p) - metric(known[p.id]), known[p.id], p) for p in after if p.id in known]
    changes.sort(key=lambda change: -change[0])
    gained = [_changed(*change, examples.get(change[2].id)) for change in changes[:most] if change[0] > 0]
    lost = [_changed(*change, examples.get(change[2].id)) for change in changes[::-1][:most] if change[0] < 0]
    return gained, lost


def _changed(change: float, before: Prediction, after: Prediction, example: Example | None) -> Changed:
    if example is None or example.gold != after.gold:  # other rows than were asked
        count = max(1 + before.gold, 1 + after.gold, len(before.scores), len(after.scores))
        question, choices = "", tuple(f"option {n + 1}" for n in range(count))
    else:
        context = f"{example.context} " if example.context and example.task != "boolq" else ""
        question, choices = f"{context}{example.question}", example.choices
    ones, others = (softmax(p.deciding_scores).tolist() if p.scores else [None] * len(choices) for p in (before, after))
    options = [
        Option(text, n == after.gold, ones[n], others[n], before.chosen == n, after.chosen == n)
        for n, text in enumerate(choices)
    ]
    return Changed(after.id, question, change, options)


def texts(questions: Questions) -> dict[str, Example]:
    """Id -> question, for the tasks whose rows are here."""
    found: dict[str, Example] = {}
    for task in questions.tasks:
        try:
            found |= {example.id: example for example in load_examples(task, "test", source=questions.source)}
        except MosloraError:
            continue
    return found
