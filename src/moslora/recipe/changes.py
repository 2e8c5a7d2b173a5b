"""What another value of a recipe's field changes: each section says it, or a field beside itself, and those who ask are
told by it.

A resumption, an arm of a comparison, an experiment and the processes of a training ask for `Changes`, not for keys.
"""

from collections.abc import Iterator
from enum import Enum
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel


class Changes(Enum):
    """What another value of a field changes."""

    RUN = "which run it is"
    DRAW = "what is drawn"
    BASE = "where the base is"  # known by its fingerprint
    START = "which weights it starts with"  # known by their sha256
    TRAINED = "what is trained"
    ROWS = "which rows are trained on"
    READING = "how rows are read"  # known by a hash of what was read
    PLACE = "where rows are"  # likewise
    COMPUTED = "how it is computed"
    WRITTEN = "what is written"
    ASKED = "what is asked"


class Arms(Enum):
    """Which arms of an experiment have the same value of a field.

    So each seed gives all of them the same rows in the same order, and the same dropout. Learning rates, seeds and
    names are the experiment's own.
    """

    ALL = "all"


Mark = TypeVar("Mark", Changes, Arms)


KEPT = (Changes.RUN, Changes.DRAW, Changes.BASE, Changes.START, Changes.TRAINED, Changes.ROWS, Changes.READING)
"""What a resumed run keeps. The others change no step of a training: output, memory, and the places of the rows, which
are compared themselves."""


@cache
def changes_at(model: type[BaseModel], key: str) -> Changes:
    """What the field at a dotted ``key`` of ``model`` changes: its own mark, or that of what is around it.

    Raises:
        LookupError: neither has one.
    """
    for pattern, mark in marked_fields(model, Changes):
        if fnmatchcase(key, pattern) or fnmatchcase(key, f"{pattern}.*"):
            return mark
    raise LookupError(f"{key}: nothing says what another value of it changes")


def marked_fields(model: type[BaseModel], kind: type[Mark], prefix: str = "") -> Iterator[tuple[str, Mark]]:
    """The dotted key of every field of ``model`` with a mark of this ``kind``, such as `Changes`; those within a marked
    one are not listed. `*` stands for a name in a mapping, such as that of a task."""
    for name, field in model.model_fields.items():
        sections = list(models_in(field.annotation))
        mark = next((mark for mark in field.metadata if isinstance(mark, kind)), None)  # written beside the field
        of_section = getattr(model, "changes", None)
        if mark is None and not sections and isinstance(of_section, kind):
            mark = of_section
        if mark is not None:
            yield prefix + name, mark
            continue
        inside = f"{prefix}{name}."
        if get_origin(field.annotation) is dict:
            inside += "*."
        for section in sections:
            yield from marked_fields(section, kind, inside)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections in a field's type: one, those of a union, or those of a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    for part in get_args(annotation):
        yield from models_in(part)
