"""The questions that a model answers unlike its base."""

from collections.abc import Mapping
from typing import NamedTuple

from scipy.special import softmax

from moslora.data.sources import data_hash, load_examples
from moslora.errors import MosloraError
from moslora.prompts.instructions import wording
from moslora.runs.evaluation import Evaluation
from moslora.runs.outcomes import log_probability
from moslora.runs.settings import Settings
from moslora.tasks import Example, Questions


class Option(NamedTuple):
    """An option of a question, before training and after."""

    text: str
    right: bool
    before: float  # probability
    after: float
    chosen_before: bool
    chosen_after: bool


class Changed(NamedTuple):
    """A question, and how its answer changed."""

    id: str
    question: str
    change: float  # of the right option's log-probability, in nats
    options: list[Option]


class Answered(NamedTuple):
    """A model's answer to one question."""

    id: str
    gold: int  # position of the right option
    scores: tuple[float, ...]  # that decide: of cloze per character
    chosen: int | None  # position
    log_probability: float  # of the right option


def most_changed(
    before: Evaluation, after: Evaluation, examples: Mapping[str, Example], *, most: int
) -> tuple[list[Changed], list[Changed]]:
    """The questions that gained most and those that lost most, at most ``most`` of each.

    Left out are questions that only one of the two answered, generated answers, which have no probabilities, and
    questions that ``examples`` does not have as they were asked.
    """
    known = _answered(before)
    changes = []
    for id, answer in _answered(after).items():
        example = examples.get(id)
        if example is None or id not in known:
            continue
        as_asked = example.gold == answer.gold and len(example.choices) == len(answer.scores)
        if as_asked:
            changes.append(_changed(known[id], answer, example))
    changes.sort(key=lambda change: -change.change)
    gained = [change for change in changes[:most] if change.change > 0]
    lost = [change for change in changes[::-1][:most] if change.change < 0]
    return gained, lost


def _answered(evaluation: Evaluation) -> dict[str, Answered]:
    """Id -> answer, of the questions that have scores."""
    found = {}
    for answers in evaluation.tasks.values():
        if answers.are_texts or not answers.scores:
            continue
        columns = (answers.ids, answers.gold, answers.deciding_scores, answers.chosen, log_probability(answers))
        for row in zip(*columns, strict=True):
            answer = Answered(*row)
            found[answer.id] = answer
    return found


def _changed(before: Answered, after: Answered, example: Example) -> Changed:
    question = example.question
    if example.context and not wording(example).has_passage:
        question = f"{example.context} {question}"
    then = softmax(before.scores).tolist()
    now = softmax(after.scores).tolist()
    options = []
    for place, text in enumerate(example.choices):
        chosen = (before.chosen == place, after.chosen == place)
        options.append(Option(text, place == after.gold, then[place], now[place], *chosen))
    return Changed(after.id, question, after.log_probability - before.log_probability, options)


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
