"""Rows with the same content, whatever their source and id.

Two texts are the same if their words are: lower-cased, word characters only. Options are the same in any order, and the
answer is the right option's text, or the usual answer to an open-ended question. So punctuation, the numbers of the
options and the name of the set do not count.
"""

import hashlib
import re
from dataclasses import replace
from typing import NamedTuple

from moslora.prompts.instructions import labels, parse_instruction, wording
from moslora.tasks import COMMONSENSE, INSTRUCTION, Example

DIGEST_BYTES = 8
"""Length of a row's digest. By chance, one evaluation of the eight sets in 5 billion has a question with another row's
digest."""

_WORD = re.compile(r"\w+")


class Content(NamedTuple):
    """The content of a row, normalised. An open-ended question, and an instruction that follows no template, is a
    question without choices.

    Formats show a question after its context (SIQA, HellaSwag), but for BoolQ's passage, which not every source has.
    """

    question: str  # with its context, if that is shown
    choices: tuple[str, ...]  # sorted
    answer: str  # the right choice, or the response of an instruction


def content(example: Example) -> Content:
    """The content of ``example``; an instruction row is parsed where possible."""
    example = parse_row(example)
    words = wording(example)
    choices = [normalized(choice) for choice in example.choices]
    options = tuple(sorted(choices)) if words.has_options else ()
    return Content(normalized(words.full_question(example)), options, choices[example.gold])


def digest(example: Example) -> bytes:
    """The first :data:`DIGEST_BYTES` of the SHA-256 of an example's content."""
    return hashlib.sha256(repr(content(example)).encode()).digest()[:DIGEST_BYTES]


def parse_row(example: Example) -> Example:
    """An instruction row parsed into question and choices, if it follows a template; any other row unchanged.

    SIQA, ARC and OpenBookQA share a template, so the returned task may be the wrong one of these; question and choices
    are right for all. The answer is the option whose label is the last word of the response; a response that ends in no
    label leaves the row unchanged.
    """
    if example.task != INSTRUCTION:
        return example
    for task in COMMONSENSE:
        parsed = parse_instruction(example.question, task)
        if parsed is None:
            continue
        context, question, choices = parsed
        question_row = replace(example, task=task, question=question, choices=choices, gold=0, context=context)
        response = example.choices[example.gold]
        last_word = normalized(response).rpartition(" ")[2]
        labels_of_choices = labels(question_row)
        if last_word not in labels_of_choices:
            return example
        return replace(question_row, gold=labels_of_choices.index(last_word))
    return example


def normalized(text: str) -> str:
    """The words of ``text``: lower case, runs of word characters, one space between."""
    return " ".join(_WORD.findall(text.lower()))
