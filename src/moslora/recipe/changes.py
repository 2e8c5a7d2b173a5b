"""What another value of a recipe's field changes: each field says it beside itself, and those who ask are told by it.

A resumption, an arm of a comparison, an experiment and the processes of a training ask for `Changes`, not for keys.
"""

from collections.abc import Iterator
from enum import Enum
from functools import cache
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


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


class Shared:
    """Beside a field: all arms of an experiment have the same value.

    So each seed gives them the same rows in the same order, and the same dropout. Learning rates, seeds and names are
    the experiment's own.
    """


KEPT = (Changes.RUN, Changes.DRAW, Changes.BASE, Changes.START, Changes.TRAINED, Changes.ROWS, Changes.READING)
"""What a resumed run keeps. The others change no step of a training: output, memory, and the places of the rows, which
are compared themselves."""


@cache
def changes_at(model: type[BaseModel], key: str) -> Changes:
    """What the field at a dotted ``key`` of ``model`` changes: its own mark, or that of the closest field around it.

    Raises:
        LookupError: neither has one.
    """
    found = None
    models = [model]
    named = False  # whether the next part of the key is a name in a mapping, such as that of a task
    for part in key.split("."):
        if named:
            named = False
            continue
        fields = [candidate.model_fields[part] for candidate in models if part in candidate.model_fields]
        models = []
        for field in fields:
            mark = mark_of(field)
            if mark is not None:
                found = mark
            named = get_origin(field.annotation) is dict
            models += models_in(field.annotation)
    if found is None:
        raise LookupError(f"{key}: nothing says what another value of it changes")
    return found


def marked_fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Changes]]:
    """The dotted key of every field of ``model`` with what it changes; those within a marked one are not listed."""
    for name, field in model.model_fields.items():
        mark = mark_of(field)
        if mark is not None:
            yield prefix + name, mark
            continue
        inside = f"{prefix}{name}."
        if get_origin(field.annotation) is dict:
            inside += "*."
        for section in models_in(field.annotation):
            yield from marked_fields(section, inside)


def mark_of(field: FieldInfo) -> Changes | None:
    """What is written beside the field; ``None`` for a section, whose fields say it themselves."""
    for mark in field.metadata:
        if isinstance(mark, Changes):
            return mark
    return None


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections in a field's type: one, those of a union, or those of a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    for part in get_args(annotation):
        yield from models_in(part)


def shared_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted keys of the fields that are `Shared` by all arms of an experiment."""
    for name, field in model.model_fields.items():
        if Shared in field.metadata:
            yield prefix + name
            continue
        for section in models_in(field.annotation):
            yield from shared_keys(section, f"{prefix}{name}.")
