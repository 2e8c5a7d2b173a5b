"""Prompt formats: objects that turn an example into prompt and answer."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from moslora.choices import FormatName
from moslora.errors import UsageError
from moslora.prompts.instructions import instruction, labels, wording
from moslora.tasks import Conversation, Example, Option, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Format(ABC):
    """Format that turns an example into text."""

    name: FormatName  # key in `FORMATS`, or "chat"
    # Whether ``prompt + answer`` is encoded as one string, in which a token may reach from one into the other, as in
    # LLM-Adapters; otherwise they are encoded separately, and the prompt is a token prefix
    joint: bool = False

    def identity(self) -> str:
        """Text that determines the format besides its name, such as a chat template; empty if nothing does.

        A run records its hash.
        """
        return ""

    def remarks(self) -> list[str]:
        """Lines about text that the format adds to every row, such as a system message."""
        return []

    def train(self, example: Example) -> Option:
        """Prompt and answer to train on: those of the right option, or the response to an open-ended question."""
        return self.options(example)[example.gold]

    @abstractmethod
    def options(self, example: Example) -> tuple[Option, ...]:
        """Prompt and answer of each option, whose answers evaluation scores; for an open-ended question a single pair,
        prompt and response."""

    @abstractmethod
    def generation_prompt(self, example: Example) -> str:
        """Prompt for a generated answer, which `answer_pattern` or the task's match reads."""


@dataclass(frozen=True)
class LabelFormat(Format):
    """Format whose answer is "the correct answer is {label}", with templates for ``{instruction}`` as prompts.

    LLM-Adapters' prompts for training and evaluation differ in white space.
    """

    name: FormatName
    train_prompt: str
    eval_prompt: str
    joint: bool = False

    def train(self, example: Example) -> Option:
        prompt = self.train_prompt.format(instruction=instruction(example))
        return self.options(example)[example.gold]._replace(prompt=prompt)

    def options(self, example: Example) -> tuple[Option, ...]:
        prompt = self.generation_prompt(example)
        responses = wording(example).responses(example)
        return tuple(Option(prompt, response, len(label)) for label, response in responses)

    def generation_prompt(self, example: Example) -> str:
        return self.eval_prompt.format(instruction=instruction(example))


@dataclass(frozen=True)
class ClozeFormat(Format):
    """Format whose answer is the option's text."""

    name: FormatName
    passage: bool = False  # whether BoolQ's prompt begins with its passage

    def options(self, example: Example) -> tuple[Option, ...]:
        """Options in the wording of their task, after the passage if the format shows it."""
        of_task = wording(example)
        if not of_task.cloze:
            raise UsageError(
                f"{example.id}: format {self.name} needs a row of a task, and this is a bare instruction;"
                " use data.format=label evaluation.protocol=choice, or add the key 'task' to the row"
            )
        passage = ""
        if self.passage and of_task.has_passage:
            if example.context is None:
                raise UsageError(f"{example.id}: format {self.name} needs BoolQ's passage, and this source has none")
            passage = f"{example.context}\n"
        options = []
        for text in of_task.cloze_texts(example):
            if not text.answer.strip() or not text.characters:
                raise UsageError(f"{example.id}: an option has no text, so format {self.name} cannot score it")
            # White space moves to the answer, as in lm-eval's `TemplateLM._encode_pair`. A tokenizer joins a space to
            # the next word, so a prompt that ends in a space is not a token prefix.
            whole = passage + text.prompt
            prompt = whole.rstrip()
            options.append(text._replace(prompt=prompt, answer=whole[len(prompt) :] + text.answer))
        return tuple(options)

    def generation_prompt(self, example: Example) -> str:
        if example.is_open_ended:
            (option,) = self.options(example)
            return option.prompt
        raise UsageError(
            f"format {self.name} has no answer to generate; use evaluation.protocol=cloze,"
            " or data.format=label or llm-adapters"
        )


TODAY = date(2024, 7, 26)
"""Date for chat templates that ask for it, fixed so that prompts do not change. It is the default of LLaMA 3.1's."""

ASKS_FOR_THE_DATE = "strftime_now"
"""Function by which a chat template asks for the date."""

_DIRECTIVES = (*"aAbBdeHIjmMpSyY", "-d", "-m")
"""Directives of ``strftime`` that templates may use, without their %."""


_REPLACED = "".join(f"|replace('%{directive}', '{TODAY.strftime('%' + directive)}')" for directive in _DIRECTIVES)
_CLOCK = f"{{% macro {ASKS_FOR_THE_DATE}(format) %}}{{{{ format{_REPLACED} }}}}{{% endmacro %}}\n"
"""Jinja macro that replaces the function `ASKS_FOR_THE_DATE` by one for :data:`TODAY`.

It is prepended to the template, as `apply_chat_template` takes no functions. Its final line break is not rendered."""


@dataclass(frozen=True)
class ChatFormat(Format):
    """Format of the tokenizer's chat template: the instruction is a user's message, the answer an option's label."""

    tokenizer: "PreTrainedTokenizerBase"
    name: FormatName = "chat"

    def options(self, example: Example) -> tuple[Option, ...]:
        prompt = self.generation_prompt(example)
        return tuple(Option(prompt, label, len(label)) for label in labels(example))

    def identity(self) -> str:
        return repr((self.template, self.tokenizer.special_tokens_map))

    @property
    def template(self) -> str:
        """Chat template, with :data:`TODAY` if it asks for the date."""
        if not self.tokenizer.chat_template:
            raise UsageError(
                f"{self.tokenizer.name_or_path}: has no chat template (it is not an instruction-tuned model); use"
                " format label"
            )
        template = str(self.tokenizer.get_chat_template())
        if ASKS_FOR_THE_DATE in template:
            return _CLOCK + template
        return template

    def remarks(self) -> list[str]:
        lines = []
        if ASKS_FOR_THE_DATE in self.template:
            lines.append(f"the chat template inserts the date, which is always {TODAY:%d %b %Y}")
        own = self._own_system_message().strip()
        if own:
            lines.append(f"the chat template puts a system message before each row that has none: {own!r}")
        return lines

    def _own_system_message(self) -> str:
        """System message that the template adds to a conversation without one."""
        given = "given"
        question = Turn("user", "question")
        try:
            before, _, after = self.render([Turn("system", given), question]).partition(given)
        except TemplateError:  # the template takes no system message
            return ""
        plain = self.render([question])
        own = plain.removeprefix(before).removesuffix(after)
        return own if before + own + after == plain else ""

    def generation_prompt(self, example: Example) -> str:
        turns: Sequence[Turn] = [Turn("user", instruction(example))]
        if isinstance(example, Conversation):
            turns = example.turns[:-1]
        return self.render(turns, add_generation_prompt=True)

    def render(self, turns: Sequence[Turn], *, add_generation_prompt: bool = False) -> str:
        """Text of a conversation in the chat template."""
        return str(
            self.tokenizer.apply_chat_template(
                [turn._asdict() for turn in turns],
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        )


_INDENT = " " * 16  # LLM-Adapters' wrappers are indented triple-quoted strings
_ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
_PROMPT_WITHOUT_INDENT = "{instruction}\n\n### Response:\n"

FORMATS: Mapping[FormatName, Format] = {
    format.name: format
    for format in (
        LabelFormat("label", train_prompt=_PROMPT_WITHOUT_INDENT, eval_prompt=_PROMPT_WITHOUT_INDENT),
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
        ClozeFormat("cloze"),
        ClozeFormat("cloze-passage", passage=True),
    )
}
"""Formats that do not depend on the model."""


def make_format(name: FormatName, tokenizer: "PreTrainedTokenizerBase") -> Format:
    """Format of this name; ``chat`` is the tokenizer's own."""
    if name == "chat":
        return ChatFormat(tokenizer)
    return FORMATS[name]
