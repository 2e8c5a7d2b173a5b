"""LLM-Adapters' instructions (arXiv 2304.01933, ``dataset/``): one template per set, rendered and parsed.

Text is used unchanged, with double and trailing spaces; the tests compare whole files by hash.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from moslora.tasks import INSTRUCTION, Example

RESPONSE_LEAD = "the correct answer is "


@dataclass(frozen=True)
class _Numbered:
    """``{head}{question}`` + one ``{Stem}{i}: {choice}`` per option + ``Answer format: {stem}1/{stem}2…``.

    Attributes:
        head: opening words.
        stem: label without its number, such as "solution".
        most: number of options in LLM-Adapters' regular expression.
        between: text between two options.
        before_format: text between the last option and "Answer format".
    """

    head: str
    stem: str
    most: int
    between: str = " "
    before_format: str = "\n\n"

    def labels(self, count: int) -> tuple[str, ...]:
        return tuple(f"{self.stem}{i}" for i in range(1, count + 1))

    def _markers(self, count: int) -> list[str]:
        first, *others = (f"{label.capitalize()}: " for label in self.labels(count))
        return ["\n\n" + first, *(self.between + other for other in others)]

    def _ending(self, count: int) -> str:
        return f"{self.before_format}Answer format: {'/'.join(self.labels(count))}"

    def render(self, question: str, choices: tuple[str, ...]) -> str:
        count = len(choices)
        options = (text for option in zip(self._markers(count), choices, strict=True) for text in option)
        return f"{self.head}{question}{''.join(options)}{self._ending(count)}"

    def parse(self, text: str) -> tuple[str, tuple[str, ...]] | None:
        """The question and choices that `render` turns into exactly ``text``, or None."""
        _, _, named = text.rpartition("Answer format: ")
        count = named.count("/") + 1
        ending = self._ending(count)
        if not 2 <= count <= self.most or not (text.startswith(self.head) and text.endswith(ending)):
            return None
        rest = text.removeprefix(self.head).removesuffix(ending)
        pieces = []
        for marker in self._markers(count):
            piece, found, rest = rest.partition(marker)
            if not found:
                return None
            pieces.append(piece)
        return pieces[0], (*pieces[1:], rest)


@dataclass(frozen=True)
class _TrueFalse:
    """BoolQ: ``{head}{question}?`` + ``Answer format: true/false``, without options and passage."""

    head: str
    most: int = 2
    ending: str = "?\n\nAnswer format: true/false"

    def labels(self, count: int) -> tuple[str, ...]:
        return ("true", "false")

    def render(self, question: str, choices: tuple[str, ...]) -> str:
        return f"{self.head}{question}{self.ending}"

    def parse(self, text: str) -> tuple[str, tuple[str, ...]] | None:
        if not (text.startswith(self.head) and text.endswith(self.ending)):
            return None
        return text.removeprefix(self.head).removesuffix(self.ending), self.labels(2)


_ANSWERS = _Numbered("Please choose the correct answer to the question: ", "answer", most=5)
_TEMPLATES: Mapping[str, _Numbered | _TrueFalse] = {
    "boolq": _TrueFalse("Please answer the following question with true or false, question: "),
    "piqa": _Numbered("Please choose the correct solution to the question: ", "solution", most=2, between="\n\n"),
    "siqa": _ANSWERS,
    "hellaswag": _Numbered("Please choose the correct ending to complete the given sentence: ", "ending", most=4),
    "winogrande": _Numbered(
        "Please choose the correct answer to fill in the blank to complete the given sentence: ",
        "option",
        most=2,
        before_format=" ",
    ),
    "arc_easy": _ANSWERS,
    "arc_challenge": _ANSWERS,
    "obqa": _ANSWERS,
}


def full_question(example: Example) -> str:
    """The question with its context where LLM-Adapters and lm-eval join them (SIQA, HellaSwag)."""
    if example.task == "siqa" and example.context is not None:
        return f"{example.context} {example.question}"
    if example.task == "hellaswag":
        return f"{example.context}: {example.question}"
    return example.question


def instruction(example: Example) -> str:
    """LLM-Adapters' ``instruction`` of an example; for an instruction row, its own text."""
    if example.task == INSTRUCTION:
        return example.question
    return _TEMPLATES[example.task].render(full_question(example), example.choices)


def parse_instruction(text: str, task: str) -> tuple[str | None, str, tuple[str, ...]] | None:
    """Context, question and choices of an instruction, or None if it does not follow the task's template.

    The inverse of `instruction`, except for SIQA: its context and question cannot be separated, and both are returned
    as the question, which renders to the same text in every format.
    """
    parsed = _TEMPLATES[task].parse(text)
    if parsed is None:
        return None
    question, choices = parsed
    if task != "hellaswag":
        return None, question, choices
    activity, found, context = question.partition(": ")
    return (activity, context, choices) if found else None


def labels(example: Example) -> tuple[str, ...]:
    """The labels of the options: "true" and "false", "answer1", …"""
    if example.task == INSTRUCTION:
        return tuple(choice.removeprefix(RESPONSE_LEAD) for choice in example.choices)
    return _TEMPLATES[example.task].labels(len(example.choices))


def response(example: Example, index: int) -> str:
    """LLM-Adapters' ``output`` if option ``index`` is right."""
    if example.task == INSTRUCTION:
        return example.choices[index]
    return RESPONSE_LEAD + labels(example)[index]


def llm_adapters_row(example: Example) -> dict[str, str]:
    """The row of LLM-Adapters' JSON files, with the keys in order."""
    return {
        "instruction": instruction(example),
        "input": "",
        "output": response(example, example.gold),
        "answer": labels(example)[example.gold],
    }


def answer_pattern(task: str) -> re.Pattern[str]:
    """LLM-Adapters' regular expression for a generated answer; the first match counts (``extract_answer``)."""
    template = _TEMPLATES[task]
    return re.compile("|".join(template.labels(template.most)))
