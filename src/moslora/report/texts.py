"""The answers in words that are right after training and were wrong before, and the other way round."""

from collections.abc import Mapping
from typing import NamedTuple

from moslora.runs.evaluation import Evaluation
from moslora.tasks import Example


class Rewritten(NamedTuple):
    """An open-ended question, and the texts that answered it."""

    id: str
    question: str
    accepted: tuple[str, ...]
    before: str
    after: str


class Written(NamedTuple):
    """A text, and whether it is right."""

    text: str
    is_right: bool


def turned(
    before: Evaluation, after: Evaluation, examples: Mapping[str, Example], *, most: int
) -> tuple[list[Rewritten], list[Rewritten]]:
    """The questions whose answer turned right, and those whose answer turned wrong, at most ``most`` of each.

    Left out are questions that only one of the two answered, and those that ``examples`` does not have.
    """
    texts_before = _texts(before)
    right = []
    wrong = []
    for id, now in _texts(after).items():
        example = examples.get(id)
        then = texts_before.get(id)
        if example is None or then is None or then.is_right == now.is_right:
            continue
        rewritten = Rewritten(id, example.question, example.choices, then.text, now.text)
        if now.is_right:
            right.append(rewritten)
        else:
            wrong.append(rewritten)
    return right[:most], wrong[:most]


def _texts(evaluation: Evaluation) -> dict[str, Written]:
    """Id -> text, of the questions that were answered in words."""
    found = {}
    for answers in evaluation.tasks.values():
        if not answers.are_in_words:
            continue
        for id, text, place in zip(answers.ids, answers.texts, answers.predicted, strict=True):
            found[id] = Written(text or "", is_right=place is not None)
    return found
