"""LLM-Adapters' instructions (arXiv 2304.01933, ``dataset/``): a question in the wording of its task, and back."""

import re

from moslora.errors import UsageError
from moslora.tasks import INSTRUCTION, TASKS, Example, Numbered, OpenEnded, Plain, TrueFalse

RESPONSE_LEAD = "the correct answer is "


def wording(example: Example) -> Numbered | TrueFalse | OpenEnded:
    """The wording of an example's task; an instruction row has none."""
    found = example.wording or TASKS[example.task].wording
    if isinstance(found, Plain):
        raise UsageError(f"{example.task}: a set of texts, not of questions; moslora eval measures them")
    return found


def wording_of_options(example: Example) -> Numbered | TrueFalse:
    """The same of a question with options."""
    found = wording(example)
    assert not isinstance(found, OpenEnded), f"{example.id}: has no options"
    return found


def full_question(example: Example) -> str:
    """The question with its context where its task joins them (of the eight sets, SIQA and HellaSwag)."""
    if example.task == INSTRUCTION or example.context is None:
        return example.question
    return wording(example).full_question(example)


def instruction(example: Example) -> str:
    """LLM-Adapters' ``instruction`` of an example; for an instruction row, its own text."""
    if example.task == INSTRUCTION:
        return example.question
    return wording(example).render(full_question(example), example.choices)


def parse_instruction(text: str, task: str) -> tuple[str | None, str, tuple[str, ...]] | None:
    """Context, question and choices of an instruction, or None if it does not follow the template of one of the eight.

    The inverse of `instruction`, except for SIQA: its context and question cannot be separated, and both are returned
    as the question, which renders to the same text in every format.
    """
    worded = TASKS[task].wording
    if isinstance(worded, OpenEnded | Plain):
        return None
    parsed = worded.parse(text)
    parts = parsed and worded.split_context(parsed[0])
    if parsed is None or parts is None:
        return None
    return *parts, parsed[1]


def labels(example: Example) -> tuple[str, ...]:
    """The labels of the options: "true" and "false", "answer1", …; of an open-ended question its response alone."""
    if example.task == INSTRUCTION:
        return tuple(choice.removeprefix(RESPONSE_LEAD) for choice in example.choices)
    if example.is_open_ended:
        return (example.response,)
    return wording_of_options(example).labels(len(example.choices))


def response(example: Example, index: int) -> str:
    """LLM-Adapters' ``output`` if option ``index`` is right; the response of an open-ended question."""
    if example.task == INSTRUCTION:
        return example.choices[index]
    if example.is_open_ended:
        return example.response
    return RESPONSE_LEAD + labels(example)[index]


def llm_adapters_row(example: Example) -> dict[str, str]:
    """The row of LLM-Adapters' JSON files, with the keys in order."""
    return {
        "instruction": instruction(example),
        "input": "",
        "output": response(example, example.gold),
        "answer": labels(example)[example.gold],
    }


def answer_pattern(example: Example) -> re.Pattern[str]:
    """LLM-Adapters' regular expression for a generated answer; the first match counts (``extract_answer``)."""
    words = wording_of_options(example)
    if words.most:
        names = words.labels(words.most)
    else:
        names = words.labels(len(example.choices))[::-1]  # answer10 before answer1
    return re.compile("|".join(names))
