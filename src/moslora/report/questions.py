"""Which options were chosen, and which questions a model answers otherwise than its base."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from moslora.compare.statistics import Floats
from moslora.data.sources import load_examples
from moslora.errors import MosloraError
from moslora.evaluation import METRICS, Prediction
from moslora.tasks import Example, Questions


def confusion(predictions: Iterable[Prediction]) -> dict[str, Floats]:
    """Task -> counts, a row for each right option and a column for each chosen one, the last for none (generate)."""
    by_task: dict[str, list[tuple[int, int | None, int]]] = {}
    for p in predictions:
        by_task.setdefault(p.task, []).append((p.gold, p.chosen, len(p.scores)))
    tables = {}
    for task, answers in by_task.items():
        size = max(max(gold + 1, (chosen or 0) + 1, options) for gold, chosen, options in answers)
        table = np.zeros((size, size + any(chosen is None for _, chosen, _ in answers)))
        for gold, chosen, _ in answers:
            table[gold, -1 if chosen is None else chosen] += 1
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
    pairs = [(known[p.id], p) for p in after if p.id in known]
    changes = sorted(((_change(*pair), *pair) for pair in pairs), key=lambda change: -change[0])
    gained = [_changed(*change, examples) for change in changes[:most] if change[0] > 0]
    lost = [_changed(*change, examples) for change in changes[::-1][:most] if change[0] < 0]
    return gained, lost


def _change(before: Prediction, after: Prediction) -> float:
    metric = METRICS["log_probability" if before.scores and after.scores else "accuracy"]
    return metric(after) - metric(before)


def _changed(change: float, before: Prediction, after: Prediction, examples: Mapping[str, Example]) -> Changed:
    example = examples.get(after.id)
    if example is None or example.gold != after.gold:  # other rows than were asked
        count = max(1 + before.gold, 1 + after.gold, len(before.scores), len(after.scores))
        question, choices = "", tuple(f"option {n + 1}" for n in range(count))
    else:
        context = f"{example.context} " if example.context and example.task != "boolq" else ""
        question, choices = f"{context}{example.question}", example.choices
    ones, others = (softmax(p.deciding_scores).tolist() if p.scores else [None] * len(choices) for p in (before, after))
    options = tuple(
        Option(text, n == after.gold, ones[n], others[n], before.chosen == n, after.chosen == n)
        for n, text in enumerate(choices)
    )
    return Changed(after.id, question, change, options)


def texts(questions: Questions) -> dict[str, Example]:
    """Id -> question, of the tasks whose rows are at hand."""
    found: dict[str, Example] = {}
    for task in questions.tasks:
        try:
            found |= {example.id: example for example in load_examples(task, "test", source=questions.source)}
        except MosloraError:
            continue
    return found
