"""Normalised content of rows, by which equal rows of different sources are found.

Two texts are equal if their words are, lower-cased and without punctuation. Options are equal in any order. The answer
is the right option's text, or the first accepted answer to an open-ended question. Punctuation, the labels of the
options and the name of the set do not count.
"""

import hashlib
import re
from dataclasses import replace
from typing import NamedTuple

from moslora.prompts.instructions import labels, parse_instruction, wording
from moslora.tasks import COMMONSENSE, INSTRUCTION, Example

DIGEST_BYTES = 8
"""Bytes of a row's digest. By chance, one evaluation of the eight sets in 5 billion has a question with the digest of
another row."""

_WORD = re.compile(r"\w+")


class Content(NamedTuple):
    """Normalised content of a row. Open-ended questions, and instructions without a known template, have no choices.

    The question includes its context (SIQA, HellaSwag), except BoolQ's passage, which some sources lack.
    """

    question: str  # with its context, if that is shown
    choices: tuple[str, ...]  # sorted
    answer: str  # the right choice, or the response of an instruction


def content(example: Example) -> Content:
    """Normalise the content of ``example``; an instruction row is parsed if it follows a template."""
    example = parse_row(example)
    words = wording(example)
    choices = [normalized(choice) for choice in example.choices]
    options = tuple(sorted(choices)) if words.has_options else ()
    return Content(normalized(words.full_question(example)), options, choices[example.gold])


def digest(example: Example) -> bytes:
    """First :data:`DIGEST_BYTES` of the SHA-256 of an example's content."""
    return hashlib.sha256(repr(content(example)).encode()).digest()[:DIGEST_BYTES]


def parse_row(example: Example) -> Example:
    """Parse an instruction row into question and choices, if it follows a template; return any other row unchanged.

    SIQA, ARC and OpenBookQA share a template, so the returned task may be a wrong one of them; question and choices are
    right for all. The answer is the option whose label is the last word of the response. If the response does not end
    in a label, the row stays unchanged.
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
    """Return the words of ``text`` in lower case, with one space between them and no punctuation."""
    return " ".join(_WORD.findall(text.lower()))
