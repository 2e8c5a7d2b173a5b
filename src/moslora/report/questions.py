"""The questions that a model answers unlike its base."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from scipy.special import softmax

from moslora.data.sources import data_hash, load_examples
from moslora.errors import MosloraError
from moslora.prompts.instructions import wording
from moslora.runs.answers import TaskAnswers
from moslora.runs.evaluation import Evaluation
from moslora.runs.outcomes import log_probability
from moslora.runs.settings import Settings
from moslora.tasks import Example, Questions


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


def most_changed(
    before: Evaluation, after: Evaluation, examples: Mapping[str, Example], *, most: int
) -> dict[str, list[Changed]]:
    """``gained`` and ``lost`` -> the questions that gained most and those that lost most, at most ``most`` of each;
    empty if none did.

    Left out are generated answers, which have no probabilities, and questions that ``examples`` does not have as they
    were asked.

    Args:
        before: the answers of the base.
        after: those of a run, to the same questions.
    """
    changes: list[Changed] = []
    of_base = before.in_order.tasks
    for task, answers in after.in_order.tasks.items():
        if answers.are_in_words:
            changes += _in_words(of_base[task], answers, examples)
        elif answers.scores and not answers.are_texts:
            changes += _of_options(of_base[task], answers, examples)
    changes.sort(key=lambda change: -change.change)
    gained = [change for change in changes[:most] if change.change > 0]
    lost = [change for change in changes[::-1][:most] if change.change < 0]
    if not gained and not lost:
        return {}
    return {"gained": gained, "lost": lost}


def _of_options(before: TaskAnswers, after: TaskAnswers, examples: Mapping[str, Example]) -> Iterator[Changed]:
    log_before = log_probability(before)
    log_after = log_probability(after)
    for row, id in enumerate(after.ids):
        example = examples.get(id)
        scores = after.deciding_scores[row]
        if example is None or example.gold != after.gold[row] or len(example.choices) != len(scores):
            continue
        then = softmax(before.deciding_scores[row]).tolist()
        now = softmax(scores).tolist()
        options = []
        for place, text in enumerate(example.choices):
            chosen = (before.chosen[row] == place, after.chosen[row] == place)
            options.append(Option(text, place == example.gold, *chosen, then[place], now[place]))
        yield Changed(id, _question(example), log_after[row] - log_before[row], options)


def _question(example: Example) -> str:
    if example.context and not wording(example).has_passage:
        return f"{example.context} {example.question}"
    return example.question


def _in_words(before: TaskAnswers, after: TaskAnswers, examples: Mapping[str, Example]) -> Iterator[Changed]:
    """Those that turned right or wrong."""
    for row, id in enumerate(after.ids):
        was_right = before.predicted[row] is not None
        is_right = after.predicted[row] is not None
        if id not in examples or was_right == is_right:
            continue
        example = examples[id]
        options = [
            Option(", ".join(example.choices), right=True),
            Option(before.texts[row] or "", was_right, chosen_before=True),
            Option(after.texts[row] or "", is_right, chosen_after=True),
        ]
        yield Changed(id, example.question, is_right - was_right, options)


def examples_asked(questions: Questions, asked: Settings) -> dict[str, Example]:
    """Id -> example, of the tasks whose rows are at hand and are those that were asked."""
    found: dict[str, Example] = {}
    source = asked.metadata.get("source", questions.source)
    for task in questions.tasks:
        try:
            rows = load_examples(task, "test", source=source)
        except MosloraError:
            continue
        if data_hash(rows) == asked.data.get(task.name):
            found |= {example.id: example for example in rows}
    return found
