"""The prompt formats: objects that turn an example into prompt and answer."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from moslora.errors import UsageError
from moslora.prompts.instructions import full_question, instruction, labels, response
from moslora.tasks import Example


@dataclass(frozen=True)
class Option:
    """One option of a question as text.

    Attributes:
        prompt: the model's input.
        answer: the text to train on or score, with any leading space: ``prompt + answer`` is the whole text.
        label: name of the option, from `labels`.
        characters: divisor of the per-character score: the length of lm-eval's choice string
            (``ConfigurableTask.process_results``, ``acc_norm``).
    """

    prompt: str
    answer: str
    label: str
    characters: int


class Format(ABC):
    """How an example becomes text.

    Attributes:
        name: key in `FORMATS`.
        joint: encode ``prompt + answer`` as one string, to reproduce the token boundary between them; otherwise
            they are encoded separately, and the prompt is a token prefix.
    """

    name: str
    joint: bool

    @abstractmethod
    def train(self, example: Example) -> Option:
        """The right option as training text."""

    @abstractmethod
    def options(self, example: Example) -> tuple[Option, ...]:
        """All options as evaluation text, in the order of ``example.choices``."""

    @abstractmethod
    def generation_prompt(self, example: Example) -> str:
        """The prompt for a generated answer, which `answer_pattern` reads."""


@dataclass(frozen=True)
class LabelFormat(Format):
    """The answer is "the correct answer is {label}"; the prompts are templates with ``{instruction}``."""

    name: str
    train_prompt: str
    eval_prompt: str
    joint: bool = False

    def train(self, example: Example) -> Option:
        return self._option(self.train_prompt, example, example.gold)

    def options(self, example: Example) -> tuple[Option, ...]:
        return tuple(self._option(self.eval_prompt, example, i) for i in range(len(example.choices)))

    def generation_prompt(self, example: Example) -> str:
        return self.eval_prompt.format(instruction=instruction(example))

    def _option(self, prompt: str, example: Example, index: int) -> Option:
        label = labels(example)[index]
        text = prompt.format(instruction=instruction(example))
        return Option(prompt=text, answer=response(example, index), label=label, characters=len(label))


# Returns (prompt, answer, characters) of each option.
_Cloze = Callable[[Example], list[tuple[str, str, int]]]


@dataclass(frozen=True)
class ClozeFormat(Format):
    """The answer is the option's text; one renderer per task."""

    name: str
    renderers: Mapping[str, _Cloze] = field(hash=False)
    joint: bool = False

    def train(self, example: Example) -> Option:
        return self.options(example)[example.gold]

    def options(self, example: Example) -> tuple[Option, ...]:
        if example.task not in self.renderers:
            raise UsageError(
                f"{example.id}: format {self.name} needs a row of one of the eight sets, and this is a bare"
                " instruction; use data.format=label evaluation.protocol=rank, or add the key 'task' to the row"
            )
        options = []
        rendered = self.renderers[example.task](example)
        for (prompt, answer, characters), label in zip(rendered, labels(example), strict=True):
            if not answer.strip() or not characters:
                raise UsageError(f"{example.id}: an option has no text, so format {self.name} cannot score it")
            # White space moves to the answer, as in lm-eval's `TemplateLM._encode_pair`: a tokenizer joins a space to
            # the next word, so a prompt that ends in a space is not a token prefix.
            trimmed = prompt.rstrip()
            options.append(Option(trimmed, prompt[len(trimmed) :] + answer, label, characters))
        return tuple(options)

    def generation_prompt(self, example: Example) -> str:
        raise UsageError(
            f"format {self.name} has no answer to generate; use evaluation.protocol=cloze,"
            " or data.format=label or llm-adapters"
        )


def _choices(prompt: str, choices: tuple[str, ...]) -> list[tuple[str, str, int]]:
    return [(prompt, f" {choice}", len(choice)) for choice in choices]


def _question_answer(example: Example) -> list[tuple[str, str, int]]:
    return _choices(f"Question: {example.question}\nAnswer:", example.choices)


def _boolq(example: Example) -> list[tuple[str, str, int]]:
    # lm-eval's order is no, yes; ours is true, false.
    return _choices(f"Question: {example.question}?\nAnswer:", ("yes", "no"))


def _boolq_with_passage(example: Example) -> list[tuple[str, str, int]]:
    if example.context is None:
        raise UsageError(f"{example.id}: format cloze-passage needs BoolQ's passage, and this source has none")
    return _choices(f"{example.context}\nQuestion: {example.question}?\nAnswer:", ("yes", "no"))


def _hellaswag(example: Example) -> list[tuple[str, str, int]]:
    if "ctx_a" not in example.meta:  # the source's text is already clean
        return _choices(full_question(example), example.choices)
    context = f"{example.context}: {example.meta['ctx_a']} {example.meta['ctx_b'].capitalize()}"
    return _choices(_without_tags(context), tuple(_without_tags(choice) for choice in example.choices))


def _without_tags(text: str) -> str:
    """lm-eval's ``hellaswag.utils.preprocess``: removes WikiHow's tags; "[title]" becomes a full stop."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _winogrande(example: Example) -> list[tuple[str, str, int]]:
    # Partial scoring: the option is in the prompt, and the rest of the sentence is scored. lm-eval divides by its
    # choice string, which here is the prompt; so does this, to give the same acc_norm.
    before, _, after = example.question.partition("_")
    return [(before + choice, f" {after.strip()}", len(before + choice)) for choice in example.choices]


_CLOZE: Mapping[str, _Cloze] = {
    "boolq": _boolq,
    "piqa": _question_answer,
    "siqa": lambda example: _choices(f"Q: {full_question(example)}\nA:", example.choices),
    "hellaswag": _hellaswag,
    "winogrande": _winogrande,
    "arc_easy": _question_answer,
    "arc_challenge": _question_answer,
    "obqa": lambda example: _choices(example.question, example.choices),
}

_INDENT = " " * 16  # LLM-Adapters' wrappers are indented triple-quoted strings
_ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
_CLEAN_PROMPT = "{instruction}\n\n### Response:\n"

FORMATS: Mapping[str, Format] = {
    format.name: format
    for format in (
        LabelFormat("label", train_prompt=_CLEAN_PROMPT, eval_prompt=_CLEAN_PROMPT),
        LabelFormat(
            "llm-adapters",
            train_prompt=(
                f"{_ALPACA}  \n\n{_INDENT}### Instruction:\n{_INDENT}{{instruction}}\n"
                f"{_INDENT}\n{_INDENT}### Response:\n{_INDENT}"
            ),
            eval_prompt=(
                f"{_ALPACA} \n\n{_INDENT}### Instruction:\n{_INDENT}{{instruction}}\n"
                f"\n{_INDENT}### Response:\n{_INDENT}"
            ),
            joint=True,
        ),
        ClozeFormat("cloze", renderers=_CLOZE),
        ClozeFormat("cloze-passage", renderers={**_CLOZE, "boolq": _boolq_with_passage}),
    )
}
