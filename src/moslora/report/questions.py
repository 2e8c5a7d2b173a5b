"""Which options were chosen, and which questions a model answers otherwise than its base."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moslora.compare.statistics import Floats
from moslora.data.sources import load_examples
from moslora.errors import MosloraError
from moslora.evaluation import METRICS, Prediction
from moslora.tasks import Example, Task


def confusion(predictions: Iterable[Prediction]) -> dict[str, Floats]:
    """Task -> counts, a row for each right option and a column for each chosen one, the last for none (generate)."""
    by_task: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        by_task.setdefault(prediction.task, []).append(prediction)
    tables = {}
    for task, rows in by_task.items():
        answers = [p.chosen for p in rows]
        size = 1 + max(max(p.gold, len(p.scores) - 1, answer or 0) for p, answer in zip(rows, answers, strict=True))
        table = np.zeros((size, size + (None in answers)))
        for p, answer in zip(rows, answers, strict=True):
            table[p.gold, -1 if answer is None else answer] += 1
        tables[task] = table
    return tables


@dataclass(frozen=True)
class Option:
    """An option with its probability before and after; ``None`` under generate."""

    text: str
    right: bool
    before: float | None
    after: float | None
    chosen_before: bool
    chosen_after: bool


@dataclass(frozen=True)
class Changed:
    """A question, and the change of the right option's log-probability in nats (under generate of being right)."""

    id: str
    question: str
    change: float
    options: tuple[Option, ...]


def most_changed(
    before: Sequence[Prediction], after: Sequence[Prediction], examples: Mapping[str, Example], *, most: int
) -> tuple[list[Changed], list[Changed]]:
    """The questions that gained most and those that lost most, at most ``most`` of each.

    Questions that only one of the two answered are left out; ``examples`` has their texts, as far as they are known.
    """
    known = {p.id: p for p in before}
    changes = sorted(
        ((_change(known[p.id], p), known[p.id], p) for p in after if p.id in known), key=lambda change: -change[0]
    )
    gained = [_changed(*change, examples) for change in changes[:most] if change[0] > 0]
    lost = [_changed(*change, examples) for change in changes[::-1][:most] if change[0] < 0]
    return gained, lost


def probabilities(prediction: Prediction) -> list[float]:
    """softmax of the deciding scores."""
    scores = prediction.deciding_scores
    weights = [math.exp(score - max(scores)) for score in scores]
    return [weight / sum(weights) for weight in weights]


def _change(before: Prediction, after: Prediction) -> float:
    metric = METRICS["log_probability" if before.scores and after.scores else "accuracy"]
    return metric(after) - metric(before)


def _changed(change: float, before: Prediction, after: Prediction, examples: Mapping[str, Example]) -> Changed:
    example = examples.get(after.id)
    if example is not None and example.gold != after.gold:  # other rows than were asked
        example = None
    count = len(example.choices) if example else 1 + max(p.gold for p in (before, after))
    count = max(count, len(before.scores), len(after.scores))
    ones, others = (probabilities(p) if p.scores else [None] * count for p in (before, after))
    options = tuple(
        Option(
            text=example.choices[n] if example else f"option {n + 1}",
            right=n == after.gold,
            before=ones[n],
            after=others[n],
            chosen_before=before.chosen == n,
            chosen_after=after.chosen == n,
        )
        for n in range(count)
    )
    context = f"{example.context} " if example and example.context and example.task != "boolq" else ""
    return Changed(after.id, f"{context}{example.question}" if example else "", change, options)


def texts(tasks: Sequence[Task], *, source: str) -> dict[str, Example]:
    """Id -> question, of the tasks whose rows are at hand."""
    found: dict[str, Example] = {}
    for task in tasks:
        try:
            found |= {example.id: example for example in load_examples(task, "test", source=source)}
        except MosloraError:
            continue
    return found
