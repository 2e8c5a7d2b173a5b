"""LLM-Adapters' instructions (arXiv 2304.01933, ``dataset/``): a question in the wording of its task, and back."""

import re

from moslora.errors import UsageError
from moslora.tasks import INSTRUCTION, TASKS, Bare, Example, Wording

WORDINGS = {INSTRUCTION: Bare(), **{name: task.wording for name, task in TASKS.items()}}
"""Wordings of the examples that do not have their own."""


def wording(example: Example) -> Wording:
    """Return the wording of a question or an instruction."""
    found = example.wording or WORDINGS[example.task]
    if found.is_text:
        raise UsageError(f"{example.task}: a set of texts, not of questions; moslora eval measures them")
    return found


def instruction(example: Example) -> str:
    """Return LLM-Adapters' ``instruction`` of an example; for an instruction row, its own text."""
    worded = wording(example)
    return worded.render(worded.full_question(example), example.choices)


def parse_instruction(text: str, task: str) -> tuple[str | None, str, tuple[str, ...]] | None:
    """Context, question and choices of an instruction, or None if it does not follow the template of one of the eight.

    The inverse of `instruction`, except for SIQA: its context and question cannot be separated, and both are returned
    as the question, which renders to the same text in every format.
    """
    worded = TASKS[task].wording
    parsed = worded.parse(text)
    parts = parsed and worded.split_context(parsed[0])
    if parsed is None or parts is None:
        return None
    return *parts, parsed[1]


def labels(example: Example) -> tuple[str, ...]:
    """Return the labels of the options: "true" and "false", "answer1", …; of an open-ended question its response
    alone."""
    return tuple(label for label, _ in wording(example).responses(example))


def llm_adapters_row(example: Example) -> dict[str, str]:
    """The row of LLM-Adapters' JSON files, with the keys in order."""
    label, response = wording(example).responses(example)[example.gold]
    return {"instruction": instruction(example), "input": "", "output": response, "answer": label}


def answer_pattern(example: Example) -> re.Pattern[str]:
    """LLM-Adapters' regular expression for a generated answer; the first match counts (``extract_answer``)."""
    words = wording(example)
    if words.most:
        names = words.labels(words.most)
    else:
        names = labels(example)[::-1]  # answer10 before answer1
    return re.compile("|".join(names))
