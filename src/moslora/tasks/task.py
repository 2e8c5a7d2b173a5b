"""`Task`: one set of questions as an entry: where its rows are, how they are read, how they are worded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

from jinja2 import StrictUndefined, TemplateError, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from moslora.choices import Split

from .example import Example
from .wording import Numbered, TrueFalse

_JINJA = ImmutableSandboxedEnvironment(undefined=StrictUndefined)


@dataclass(frozen=True)
class Hub:
    """A set on the Hugging Face hub, as parquet (dataset scripts no longer load).

    Attributes:
        path: dataset id.
        revision: pinned commit; of an own task also a branch or a tag, and ``None`` for the default branch.
        config: subset; None if there is only one.
        data_files: hub split -> file, where the commit is a parquet conversion without a dataset card.
    """

    path: str
    revision: str | None
    config: str | None = None
    data_files: Mapping[str, str] | None = field(default=None, hash=False)


@dataclass(frozen=True)
class Columns:
    """How a row becomes a question: Jinja expressions over its columns (``row`` is the whole row).

    A text with ``{{`` in it is a Jinja template instead, as in lm-eval's task files.

    Attributes:
        question: a text.
        options: a list of texts; a tuple is the options themselves, each a literal text or a template.
        answer: the right option: its position from 0, its text, or its letter.
        context: a text, or ``None`` for none.
        meta: name -> text, for `Example.meta`.
    """

    question: str = "question"
    options: str | tuple[str, ...] = "options"
    answer: str = "answer"
    context: str | None = None
    meta: Mapping[str, str] = field(default_factory=dict, hash=False)

    def read(self, row: Mapping[str, Any]) -> tuple[str, tuple[str, ...], int, str | None, dict[str, str]]:
        """Question, choices, gold, context and meta of a row.

        Raises:
            ValueError: what is wrong with the row.
        """
        question = _text("question", _evaluate("question", self.question, row))
        if isinstance(self.options, str):
            listed = _evaluate("options", self.options, row)
            if not isinstance(listed, list | tuple):
                raise ValueError(f"options: expected a list, found {type(listed).__name__} {str(listed)[:40]!r}")
        else:
            listed = [_evaluate("options", option, row) if "{{" in option else option for option in self.options]
        choices = tuple(_text(f"option {number}", option) for number, option in enumerate(listed, start=1))
        if len(choices) < 2:
            raise ValueError(f"options: expected two or more, found {len(choices)}")
        gold = _position(_evaluate("answer", self.answer, row), choices)
        context = None if self.context is None else _text("context", _evaluate("context", self.context, row))
        meta = {name: str(_evaluate(name, source, row)) for name, source in self.meta.items()}
        return question, choices, gold, context, meta


def _evaluate(field: str, source: str, row: Mapping[str, Any]) -> Any:
    try:
        value = compiled(source)({**row, "row": row})
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{field}: {error}; the row has {', '.join(map(str, row))}") from None
    if isinstance(value, Undefined):
        raise ValueError(f"{field}: {source} is not there; the row has {', '.join(map(str, row))}")
    return value


@cache
def compiled(source: str) -> Callable[[Mapping[str, Any]], Any]:
    """A Jinja expression, or a template if ``source`` has ``{{``, as a function of the row; runs in Jinja's sandbox.

    Raises:
        TemplateSyntaxError: it is not one.
    """
    if "{{" in source:
        return _JINJA.from_string(source).render
    return _JINJA.compile_expression(source, undefined_to_none=False)


def _text(field: str, value: Any) -> str:
    """A text or number as text."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{field}: expected a text, found {type(value).__name__}")
    text = str(value)
    if not text.strip():
        raise ValueError(f"{field}: is empty")
    return text


def _position(answer: Any, choices: tuple[str, ...]) -> int:
    """The position that ``answer`` names: a number from 0, an option's text, or a letter."""
    if isinstance(answer, int) and not isinstance(answer, bool):
        gold = answer
    elif choices.count(str(answer)) == 1:
        gold = choices.index(str(answer))
    elif isinstance(answer, str) and len(answer) == 1 and answer.isascii() and answer.isalpha():
        gold = ord(answer.upper()) - ord("A")
    else:
        raise ValueError(
            f"answer {answer!r}: must be the position of an option from 0, its text, or its letter; an expression can"
            " turn it into one, such as answer: label|int - 1"
        )
    if not 0 <= gold < len(choices):
        raise ValueError(f"answer {answer!r}: there are {len(choices)} options")
    return gold


@dataclass(frozen=True)
class Task:
    """One set.

    Attributes:
        name: as in recipes and tables.
        columns: how its rows are read.
        wording: of its questions.
        splits: our split -> hub split, or the file of a set without a hub.
        hub: where it lies on the hub; ``None`` for local files.
        held_out: share of the training rows that are the test rows of a set without any.
        folder: name in LLM-Adapters' ``dataset/``; ``None`` for a set that is not among the eight.
        rows: rows per split of ours, where they are known (WinoGrande: of its ``xl`` training set).
    """

    name: str
    columns: Columns
    wording: Numbered | TrueFalse
    splits: Mapping[Split, str] = field(hash=False)
    hub: Hub | None = None
    held_out: float = 0.1
    folder: str | None = None
    rows: Mapping[Split, int] = field(default_factory=dict, hash=False)

    @property
    def own(self) -> bool:
        """Whether it is a user's, and not one of the eight."""
        return self.folder is None

    def example(self, row: Mapping[str, Any], id: str) -> Example:
        """A row as a question; a `ValueError` says what is wrong with it."""
        question, choices, gold, context, meta = self.columns.read(row)
        return Example(id, self.name, question, choices, gold, context, meta, self.wording if self.own else None)


class Questions(NamedTuple):
    """The test rows of some tasks; ``source`` is that of those of the eight sets."""

    tasks: tuple[Task, ...]
    source: str
