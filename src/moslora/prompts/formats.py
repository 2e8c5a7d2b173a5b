"""The prompt formats: objects that turn an example into prompt and answer."""

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
    """How an example becomes text."""

    name: FormatName  # key in `FORMATS`, or "chat"
    # Whether ``prompt + answer`` is encoded as one string, in which a token may reach from one into the other, as in
    # LLM-Adapters; otherwise they are encoded separately, and the prompt is a token prefix
    joint: bool = False

    def identity(self) -> str:
        """What decides the texts besides the format's name, such as a chat template; empty if nothing does. A run is
        recorded with its hash."""
        return ""

    def remarks(self) -> list[str]:
        """What the texts have that no row says, a line each."""
        return []

    def train(self, example: Example) -> Option:
        """The right option as training text."""
        return self.options(example)[example.gold]

    @abstractmethod
    def options(self, example: Example) -> tuple[Option, ...]:
        """All options as evaluation text, in the order of ``example.choices``; of an open-ended question its response
        alone."""

    @abstractmethod
    def generation_prompt(self, example: Example) -> str:
        """The prompt for a generated answer, which `answer_pattern` reads, or the task's own match."""


@dataclass(frozen=True)
class LabelFormat(Format):
    """The answer is "the correct answer is {label}"; the prompts are templates with ``{instruction}``.

    There are two because those of LLM-Adapters' training and evaluation differ, in white space only.
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
    """The answer is the option's text."""

    name: FormatName
    passage: bool = False  # whether BoolQ's prompt begins with its passage

    def options(self, example: Example) -> tuple[Option, ...]:
        """In the wording of their task, with a passage if the format shows it."""
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
            # White space moves to the answer, as in lm-eval's `TemplateLM._encode_pair`: a tokenizer joins a space to
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
"""The date for chat templates that ask for it: prompts must not change from day to day. LLaMA 3.1's template has this
date where it cannot ask."""

ASKS_FOR_THE_DATE = "strftime_now"
"""The function by which a chat template asks for the date."""

_DIRECTIVES = (*"aAbBdeHIjmMpSyY", "-d", "-m")
"""The directives of ``strftime`` that templates may use, without their %."""


_REPLACED = "".join(f"|replace('%{directive}', '{TODAY.strftime('%' + directive)}')" for directive in _DIRECTIVES)
_CLOCK = f"{{% macro {ASKS_FOR_THE_DATE}(format) %}}{{{{ format{_REPLACED} }}}}{{% endmacro %}}\n"
"""A macro of Jinja that replaces the function `ASKS_FOR_THE_DATE` by one for :data:`TODAY`. It is prepended to the
template, as `apply_chat_template` takes no functions; its line break at the end does not get into the prompt."""


@dataclass(frozen=True)
class ChatFormat(Format):
    """The instruction as a user's message in the tokenizer's chat template, answered by the option's label."""

    tokenizer: "PreTrainedTokenizerBase"
    name: FormatName = "chat"

    def options(self, example: Example) -> tuple[Option, ...]:
        prompt = self.generation_prompt(example)
        return tuple(Option(prompt, label, len(label)) for label in labels(example))

    def identity(self) -> str:
        return repr((self.template, self.tokenizer.special_tokens_map))

    @property
    def template(self) -> str:
        """The chat template, with :data:`TODAY` if it asks for the date."""
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
        found = []
        if ASKS_FOR_THE_DATE in self.template:
            found.append(f"the chat template inserts the date, which is always {TODAY:%d %b %Y} here")
        own = self._own_system_message().strip()
        if own:
            found.append(f"the chat template puts a system message before each row that has none: {own!r}")
        return found

    def _own_system_message(self) -> str:
        """The system message where a conversation has none: what stands in the place of a given one."""
        given = "given"
        question = Turn("user", "question")
        try:
            before, _, after = self.render([Turn("system", given), question]).partition(given)
        except TemplateError:  # of a template that takes none
            return ""
        plain = self.render([question])
        own = plain.removeprefix(before).removesuffix(after)
        return own if before + own + after == plain else ""

    def generation_prompt(self, example: Example) -> str:
        asked: Sequence[Turn] = [Turn("user", instruction(example))]
        if isinstance(example, Conversation):
            asked = example.turns[:-1]
        return self.render(asked, add_generation_prompt=True)

    def render(self, turns: Sequence[Turn], *, add_generation_prompt: bool = False) -> str:
        """The text of a conversation."""
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
"""The formats that are the same for every model."""


def make_format(name: FormatName, tokenizer: "PreTrainedTokenizerBase") -> Format:
    """The format of that name; ``chat`` is the tokenizer's own."""
    if name == "chat":
        return ChatFormat(tokenizer)
    return FORMATS[name]
