"""Marks on the fields of a recipe that say what another value changes, and the search for them.

A section has a mark for all its fields, and a field may have its own. Resuming a run, comparing arms and experiments
ask for these marks, not for keys.
"""

from collections.abc import Iterator
from enum import Enum
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel


class Changes(Enum):
    """Mark of a field: what another value of it changes."""

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
    """Mark of a field that must be the same in the arms of an experiment.

    Each seed then gives all arms the same rows in the same order, and the same dropout.
    """

    ALL = "all"


Mark = TypeVar("Mark", Changes, Arms)


KEPT = (Changes.RUN, Changes.DRAW, Changes.BASE, Changes.START, Changes.TRAINED, Changes.ROWS, Changes.READING)
"""Marks of the fields that a resumed run must keep. The other fields change no step of a training: output, memory, and
the places of the rows, which are compared by content."""


@cache
def changes_at(model: type[BaseModel], key: str) -> Changes:
    """Return what the field at a dotted ``key`` of ``model`` affects: by its own mark, or that of the section around
    it.

    Raises:
        LookupError: no mark applies to ``key``.
    """
    for pattern, mark in marked_fields(model, Changes):
        if fnmatchcase(key, pattern) or fnmatchcase(key, f"{pattern}.*"):
            return mark
    raise LookupError(f"{key}: has no mark")


def marked_fields(model: type[BaseModel], kind: type[Mark], prefix: str = "") -> Iterator[tuple[str, Mark]]:
    """List the dotted keys of the fields of ``model`` with a mark of this ``kind``, such as `Changes`.

    Fields inside a marked one are not listed. `*` stands for a name in a mapping, such as a task's.
    """
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
    """List the sections in a field's type, which may be a section, a union, or a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    for part in get_args(annotation):
        yield from models_in(part)
