"""LLM-Adapters' instructions (arXiv 2304.01933, ``dataset/``): rendering and parsing."""

import re

from moslora.errors import UsageError
from moslora.tasks import INSTRUCTION, TASKS, Bare, Example, Wording

WORDINGS = {INSTRUCTION: Bare(), **{name: task.wording for name, task in TASKS.items()}}
"""Task -> wording of examples without a wording of their own."""


def wording(example: Example) -> Wording:
    """Wording of an example that is a question or an instruction; an example that is a text to measure is refused."""
    worded = example.wording or WORDINGS[example.task]
    if worded.is_text:
        raise UsageError(f"{example.task}: a set of texts, not of questions; moslora eval measures them")
    return worded


def instruction(example: Example) -> str:
    """LLM-Adapters' ``instruction`` of an example; the text itself for a bare instruction."""
    worded = wording(example)
    return worded.render(worded.full_question(example), example.choices)


def parse_instruction(text: str, task: str) -> tuple[str | None, str, tuple[str, ...]] | None:
    """Context, question and choices of an instruction; ``None`` if it does not follow the template of ``task``.

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
    """Labels of the options: "true" and "false", "answer1", …; the response alone for an open-ended question."""
    return tuple(label for label, _ in wording(example).responses(example))


def llm_adapters_row(example: Example) -> dict[str, str]:
    """Row of LLM-Adapters' JSON files, with the keys in order."""
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
