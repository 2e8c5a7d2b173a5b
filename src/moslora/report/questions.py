"""The questions that a model answers unlike its base."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from scipy.special import softmax

from moslora.data.sources import data_hash, load_examples
from moslora.errors import MosloraError
from moslora.prompts.instructions import wording
from moslora.report.runs import ReportedRun
from moslora.runs.answers import TaskAnswers
from moslora.runs.evaluation import Evaluation
from moslora.runs.outcomes import accuracy, log_probability
from moslora.tasks import Example

MOST_CHANGED = 8
"""Questions that gained most, and as many that lost most."""


class Option(NamedTuple):
    """An option of a question; or, of an answer in words, the accepted one or a text that was written."""

    text: str
    right: bool
    chosen_before: bool = False
    chosen_after: bool = False
    before: float | None = None  # probability; ``None`` of words
    after: float | None = None


class Changed(NamedTuple):
    """A question, and how its answer changed."""

    id: str
    question: str
    change: float  # of the right option's log-probability, in nats; of an answer in words 1 or -1
    options: list[Option]


def changed_questions(run: ReportedRun) -> dict[str, list[Changed]]:
    """`most_changed` of a run against its base; empty without a base, and of
    tasks whose rows are not at hand, or are not those that were asked."""
    if run.tuned is None or run.base is None:
        return {}
    asked = run.tuned.settings
    questions = run.run.recipe.questions
    examples: dict[str, Example] = {}
    for task in questions.tasks:
        try:
            rows = load_examples(task, "test", source=asked.metadata.get("source", questions.source))
        except MosloraError:
            continue
        if data_hash(rows) == asked.data.get(task.name):
            examples |= {example.id: example for example in rows}
    return most_changed(run.base, run.tuned, examples, most=MOST_CHANGED)


def most_changed(
    before: Evaluation, after: Evaluation, examples: Mapping[str, Example], *, most: int
) -> dict[str, list[Changed]]:
    """``gained`` and ``lost`` -> the questions that gained most and those that lost most, at most ``most`` of each;
    without a kind of which there are none.

    Left out are generated answers, which have no probabilities, and questions that ``examples`` does not have.

    Args:
        before: the answers of the base.
        after: those of a run, to the same questions.
    """
    changes: list[Changed] = []
    of_base = before.in_order.tasks
    for task, answers in after.in_order.tasks.items():
        if answers.are_in_words or (answers.scores and not answers.are_texts):
            changes += _changes(of_base[task], answers, examples)
    changes.sort(key=lambda change: change.change)
    lost = [change for change in changes[:most] if change.change < 0]
    gained = [change for change in changes[::-1][:most] if change.change > 0]
    return {kind: found for kind, found in (("gained", gained), ("lost", lost)) if found}


def _changes(before: TaskAnswers, after: TaskAnswers, examples: Mapping[str, Example]) -> Iterator[Changed]:
    outcome = accuracy if after.are_in_words else log_probability
    options_of = _in_words if after.are_in_words else _with_probabilities
    changes = np.subtract(outcome(after), outcome(before))
    for row, id in enumerate(after.ids):
        if id not in examples:
            continue
        example = examples[id]
        question = example.question
        if example.context and not wording(example).has_passage:
            question = f"{example.context} {question}"
        yield Changed(id, question, changes[row], options_of(before, after, row, example))


def _with_probabilities(before: TaskAnswers, after: TaskAnswers, row: int, example: Example) -> list[Option]:
    then, now = (softmax(answers.deciding_scores[row]).tolist() for answers in (before, after))
    options = []
    for place, text in enumerate(example.choices):
        was_chosen = before.chosen[row] == place
        is_chosen = after.chosen[row] == place
        options.append(Option(text, place == example.gold, was_chosen, is_chosen, then[place], now[place]))
    return options


def _in_words(before: TaskAnswers, after: TaskAnswers, row: int, example: Example) -> list[Option]:
    return [
        Option(", ".join(example.choices), right=True),
        Option(before.texts[row] or "", before.predicted[row] is not None, chosen_before=True),
        Option(after.texts[row] or "", after.predicted[row] is not None, chosen_after=True),
    ]
