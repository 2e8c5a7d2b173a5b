"""Wordings of a task's questions: LLM-Adapters' instruction (arXiv 2304.01933, ``dataset/``), and the cloze prompt.

Texts are used unchanged, with double and trailing spaces. Tests compare them with LLM-Adapters' whole files by hash.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

from .matching import Match


class ExampleTexts(Protocol):
    """Texts of a `moslora.tasks.Example` that a wording reads."""

    @property
    def question(self) -> str: ...

    @property
    def choices(self) -> tuple[str, ...]: ...

    @property
    def context(self) -> str | None: ...

    @property
    def meta(self) -> Mapping[str, str]: ...

    @property
    def response(self) -> str: ...


ContextAndQuestion = tuple[str | None, str]

RESPONSE_LEAD = "the correct answer is "
"""Beginning of the response to a question with options, before the label."""


class Option(NamedTuple):
    """Option of a question as prompt and answer, or the response to an open-ended question."""

    prompt: str  # the model's input
    answer: str  # the text to train on or score, with any leading space: ``prompt + answer`` is the whole text
    # Divisor of the per-character score: the length of lm-eval's choice string (``ConfigurableTask.process_results``,
    # ``acc_norm``)
    characters: int


class Wording:
    """Wording of a row; by default the question alone, without options."""

    is_text: ClassVar[bool] = False  # it is a text, about which nothing is asked
    is_open_ended: ClassVar[bool] = False  # it is answered in words, without options
    has_options: ClassVar[bool] = False  # it is a question with options
    has_passage: ClassVar[bool] = False  # the context is a passage, which instructions leave out
    shown: str = "{question}"  # the question as asked, for an example that has a context
    cloze: str = ""  # prompt of format ``cloze``; empty if there is none
    most: int | None = None  # number of options in LLM-Adapters' expression; ``None`` for as many as a question has

    def render(self, question: str, choices: tuple[str, ...]) -> str:
        """LLM-Adapters' ``instruction`` for a question."""
        return question

    def parse(self, text: str) -> tuple[str, tuple[str, ...]] | None:
        """Question and choices that `render` turns into exactly ``text``; ``None`` if there are none."""
        return None

    def labels(self, count: int) -> tuple[str, ...]:
        """Labels of ``count`` options."""
        return ()

    def responses(self, example: ExampleTexts) -> list[tuple[str, str]]:
        """Label of each option with LLM-Adapters' ``output`` for it; the response alone for an open-ended question."""
        return [(label, RESPONSE_LEAD + label) for label in self.labels(len(example.choices))]

    def full_question(self, example: ExampleTexts) -> str:
        """Question, after its context if the task joins them (of the eight sets, SIQA and HellaSwag)."""
        if example.context is None:
            return example.question
        return self.shown.format(context=example.context, question=example.question)

    def split_context(self, text: str) -> ContextAndQuestion | None:
        """Context and question of a `full_question`; ``None`` for any other text.

        If they cannot be separated, the whole text is the question, which renders to the same text.
        """
        return None, text

    def read_typed(self, text: str) -> ContextAndQuestion:
        """Context and question of a text that a user typed; a `ValueError` says what is wrong with it."""
        return None, text

    def cloze_prompt(self, example: ExampleTexts) -> str:
        """Return the template ``cloze`` filled with the example's texts; without a context, ``{context}`` is
        removed."""
        template = self.cloze
        if not example.context:
            template = re.sub(r"\{context\}\s*", "", template)
        question = example.question
        if "{context}" not in template:
            question = self.full_question(example)
        texts = {"{context}": example.context or "", "{question}": question}
        parts = re.split(r"(\{context\}|\{question\})", template)
        return "".join(texts.get(part, part) for part in parts)

    def cloze_texts(self, example: ExampleTexts) -> list[Option]:
        """Prompt and answer of every option."""
        return continued(self.cloze_prompt(example), example.choices)


def continued(prompt: str, choices: Sequence[str]) -> list[Option]:
    """One `Option` for each of ``choices``: ``prompt``, and as answer a space and the choice."""
    return [Option(prompt, f" {choice}", len(choice)) for choice in choices]


@dataclass(frozen=True)
class Numbered(Wording):
    """``{head}{question}`` + one ``{Stem}{i}: {choice}`` per option + ``Answer format: {stem}1/{stem}2…``.

    The stem is the word for an option, such as ``answer`` or ``solution``.
    """

    head: str  # opening words
    stem: str  # label without its number, such as "solution"
    most: int | None = None
    between: str = " "  # text between two options
    before_format: str = "\n\n"  # text between the last option and "Answer format"
    shown: str = "{question}"  # of ``{context}`` and ``{question}``
    cloze: str = "Question: {question}\nAnswer:"  # that an option's text answers; ``{context}`` is shown apart

    has_options: ClassVar[bool] = True

    def labels(self, count: int) -> tuple[str, ...]:
        return tuple(f"{self.stem}{i}" for i in range(1, count + 1))

    def _markers(self, count: int) -> list[str]:
        """Text before each option in the prompt, such as ``Answer1: ``."""
        first, *others = [f"{label.capitalize()}: " for label in self.labels(count)]
        return ["\n\n" + first, *(self.between + other for other in others)]

    def _ending(self, count: int) -> str:
        """Text after the last option."""
        return f"{self.before_format}Answer format: {'/'.join(self.labels(count))}"

    def render(self, question: str, choices: tuple[str, ...]) -> str:
        count = len(choices)
        text = self.head + question
        for marker, choice in zip(self._markers(count), choices, strict=True):
            text += marker + choice
        return text + self._ending(count)

    def parse(self, text: str) -> tuple[str, tuple[str, ...]] | None:
        _, _, named = text.rpartition("Answer format: ")
        count = named.count("/") + 1
        if not 2 <= count <= (self.most or count):
            return None
        # The first marker ends a text, whatever follows: (?>…) is not tried again.
        texts = "".join(f"(?>(.*?){re.escape(marker)})" for marker in self._markers(count))
        match = re.fullmatch(f"{re.escape(self.head)}{texts}(.*){re.escape(self._ending(count))}", text, re.DOTALL)
        if match is None:
            return None
        question, *choices = match.groups()
        return question, tuple(choices)


@dataclass(frozen=True)
class Blank(Numbered):
    """WinoGrande: the question is a sentence with a _ in the place of the option."""

    def read_typed(self, text: str) -> ContextAndQuestion:
        if text.count("_") != 1:
            raise ValueError("the sentence must contain one _, where the options go")
        return None, text

    def cloze_texts(self, example: ExampleTexts) -> list[Option]:
        """Options for partial scoring: the option is in the prompt, and the rest of the sentence is scored.

        A score per character is divided by the prompt's length, as in lm-eval's acc_norm, whose choice string is the
        prompt.
        """
        before, _, after = example.question.partition("_")
        answer = f" {after.strip()}"
        return [Option(before + choice, answer, len(before + choice)) for choice in example.choices]


@dataclass(frozen=True)
class Ending(Numbered):
    """HellaSwag: the context is an activity, the question a text to go on with, the options its endings."""

    def split_context(self, text: str) -> ContextAndQuestion | None:
        activity, colon, question = text.partition(": ")
        return (activity, question) if colon else None

    def read_typed(self, text: str) -> ContextAndQuestion:
        parts = self.split_context(text)
        if parts is None:
            raise ValueError("must begin with an activity and a colon, as in 'Baking: She takes'")
        return parts

    def cloze_texts(self, example: ExampleTexts) -> list[Option]:
        """Prompt and answer of every option; WikiHow's tags are removed from the text of the hub's rows."""
        if "ctx_a" not in example.meta:
            return super().cloze_texts(example)
        prompt = f"{example.context}: {example.meta['ctx_a']} {example.meta['ctx_b'].capitalize()}"
        return continued(_without_tags(prompt), [_without_tags(choice) for choice in example.choices])


def _without_tags(text: str) -> str:
    """lm-eval's ``hellaswag.utils.preprocess``: removes WikiHow's tags; "[title]" becomes a full stop."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


@dataclass(frozen=True)
class TrueFalse(Wording):
    """BoolQ: ``{head}{question}?`` + ``Answer format: true/false``, without options and passage."""

    head: str
    most: int | None = 2
    ending: str = "?\n\nAnswer format: true/false"
    shown: str = "{question}"
    cloze: str = "Question: {question}?\nAnswer:"

    has_options: ClassVar[bool] = True
    has_passage: ClassVar[bool] = True

    def labels(self, count: int) -> tuple[str, ...]:
        return ("true", "false")

    def read_typed(self, text: str) -> ContextAndQuestion:
        return None, text.rstrip("? ")

    def render(self, question: str, choices: tuple[str, ...]) -> str:
        return f"{self.head}{question}{self.ending}"

    def parse(self, text: str) -> tuple[str, tuple[str, ...]] | None:
        if not (text.startswith(self.head) and text.endswith(self.ending)):
            return None
        return text.removeprefix(self.head).removesuffix(self.ending), self.labels(2)

    def cloze_texts(self, example: ExampleTexts) -> list[Option]:
        return continued(self.cloze_prompt(example), ("yes", "no"))  # lm-eval's order is no, yes; ours is true, false


@dataclass(frozen=True)
class OpenEnded(Wording):
    """``{head}{question}``, answered in words: what the model writes is read and compared by ``match``."""

    head: str
    match: Match
    max_new_tokens: int  # of the generated text
    stop: tuple[str, ...]  # texts that end the generated text and are no part of it
    shown: str = "{question}"
    cloze: str = "Question: {question}\nAnswer:"

    is_open_ended: ClassVar[bool] = True

    def render(self, question: str, choices: tuple[str, ...]) -> str:
        return self.head + question

    def responses(self, example: ExampleTexts) -> list[tuple[str, str]]:
        return [(example.response, example.response)]

    def cloze_texts(self, example: ExampleTexts) -> list[Option]:
        """One option: the prompt, with the response as answer. Other accepted answers are not used."""
        return continued(self.cloze_prompt(example), [example.response])

    def before_stop(self, text: str) -> str:
        """Part of ``text`` before the first stop text."""
        ends = [text.find(stop) for stop in self.stop if stop in text]
        return text[: min(ends, default=len(text))]


@dataclass(frozen=True)
class Bare(Wording):
    """Wording of a bare instruction: its text unchanged, and as options complete responses."""

    def responses(self, example: ExampleTexts) -> list[tuple[str, str]]:
        return [(choice.removeprefix(RESPONSE_LEAD), choice) for choice in example.choices]


@dataclass(frozen=True)
class Plain(Wording):
    """A text whose own probability is measured, without a question."""

    is_text: ClassVar[bool] = True
