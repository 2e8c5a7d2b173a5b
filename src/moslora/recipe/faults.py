"""Turns pydantic's errors into lines: `file: key.path = value: what is wrong; how to fix it`."""

import difflib
import re
from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from .builtin import printable
from .layers import Given
from .recipe import Recipe

KeyPath = tuple[str, ...]

_WORDS = {
    "dict_type": "must be a mapping of keys",
    "missing": "is missing; set it in this file, or extend a recipe that does",
    "model_attributes_type": "must be a mapping of keys",
    "model_type": "must be a mapping of keys",
    "tuple_type": "must be a list",
    "union_tag_invalid": "must be one of {expected_tags}",
}
"""Pydantic's error types -> our text, where pydantic's is about Python."""

_NAMES_ELSEWHERE = {
    "lora": "identity",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "lr": "learning_rate",
    "moslora": "dense",
    "r": "rank",
}
"""Names of keys and mixers in other tools and papers -> their names here."""


def fault_lines(given: Given, *, main: str, complete: bool) -> Iterator[str]:
    """A line for each fault of a recipe.

    Args:
        given: the merged layers.
        main: the recipe's own file, named for values that no file sets.
        complete: whether all files could be read; if not, a missing value may be in one of them.
    """
    values = given.plain()
    errors = _errors(values)
    wrong: dict[KeyPath, list[ErrorDetails]] = {}
    for error in errors:
        if error["type"] != "conflict":
            wrong.setdefault(_key_path(error, values), []).append(error)
    for path, found in wrong.items():
        # Every alternative of a union reports an error; one is noise if another alternative matched further in.
        noise = any(other[: len(path)] == path for other in wrong if other != path)
        if not noise and (complete or found[0]["type"] != "missing"):
            yield _line(given, path, _message(found), main)

    # Pydantic checks combinations only when all fields are valid: validate again without the wrong fields.
    for error in _errors(_without(values, wrong)) if wrong else errors:
        for conflict in error.get("ctx", {}).get("conflicts", ()):
            paths = [tuple(path.split(".")) for path in conflict.paths]
            overlap = any(path[: len(other)] == other[: len(path)] for path in paths for other in wrong)
            if complete and not overlap:
                blamed = min(paths, key=lambda path: _distance(given, path, main))
                yield _line(given, blamed, conflict.message, main)


def _errors(values: Any) -> list[ErrorDetails]:
    try:
        Recipe.model_validate(values)
    except ValidationError as error:
        return error.errors(include_url=False)
    return []


def _key_path(error: ErrorDetails, values: Any) -> KeyPath:
    """The key of the error in `values`; pydantic's own location also names alternatives of unions."""
    path = []
    here: Any = values
    for step in error["loc"]:
        inside = here if isinstance(here, dict) else dict(enumerate(here if isinstance(here, list) else ()))
        if step in inside:
            here = inside[step]
            path.append(str(step))
    beyond = {"missing": error["loc"][-1:], "union_tag_invalid": ("kind",)}.get(error["type"], ())
    return (*path, *map(str, beyond))


def _without(values: dict[str, Any], paths: Iterable[KeyPath]) -> dict[str, Any]:
    """A copy of `values` with defaults at `paths`."""
    copy = deepcopy(values)
    for *parents, last in paths:
        here = copy
        for key in parents:
            if not isinstance(here.get(key), dict):  # an item of a list: remove the whole list
                last = key
                break
            here = here[key]
        here.pop(last, None)
    # These two have no default, and no rule reads them.
    return copy | {"name": "unknown", "model": {**copy.get("model", {}), "name": "unknown"}}


def _distance(given: Given, path: KeyPath, main: str) -> int:
    """Rank of the place that sets `path`: a conflict is reported at the field that the user set most directly."""
    trail = given.trail(path)
    if len(trail) <= len(path) or trail[-1].origin == "default":
        return 3
    return {"override": 0, main: 1}.get(trail[-1].origin, 2)


def _line(given: Given, path: KeyPath, message: str, main: str) -> str:
    trail = given.trail(path)
    origin = main if trail[-1].origin == "default" else trail[-1].origin
    value = trail[-1].plain()
    try:
        for key in path[len(trail) - 1 :]:  # the rest of the path is inside a list
            value = value[int(key)]
        text = repr(value)
        shown = f" = {text if len(text) <= 80 else f'{text[:79]}…'}"
    except (TypeError, ValueError, LookupError):  # the value is missing
        shown = ""
    return f"{origin}: {'.'.join(map(printable, path))}{shown}: {message}"


def _message(errors: list[ErrorDetails]) -> str:
    first, context = errors[0], errors[0].get("ctx", {})
    if first["type"] == "extra_forbidden":
        return _unknown(first["loc"])
    if first["type"] == "value_error":
        return "; ".join(str(context["error"]).splitlines())
    texts = {error["type"]: re.sub(r"^\w+ should ", "must ", error["msg"]) for error in errors}
    texts = {kind: _WORDS[kind].format(**context) if kind in _WORDS else text for kind, text in texts.items()}
    message = " or ".join(dict.fromkeys(texts.values())).replace(" or must ", " or ")
    meant = _closest(context["tag"], context["expected_tags"].split("'")) if "tag" in context else []
    return f"{message}; did you mean {meant[0]}?" if meant else message


def _unknown(location: tuple[str | int, ...]) -> str:
    *section, key = map(str, location)
    if section[:1] == ["tasks"]:
        del section[1]  # the task's own name
    models = dict(_models(Recipe))
    known = [*models[tuple(section)].model_fields, *(() if section else ("extends",))]
    key = _NAMES_ELSEWHERE.get(key, key)
    # The right key in the wrong section, such as `learning_rate` at the top level.
    elsewhere = [
        ".".join((*at, key))
        for at, model in models.items()
        if key in model.model_fields and at[:2] != tuple(section[:2])
    ]
    if meant := _closest(key, known) or elsewhere:
        return f"unknown key; did you mean {meant[0]}?"
    return f"unknown key; must be one of {', '.join(known)}"


def _closest(word: str, known: Iterable[str]) -> list[str]:
    """The known word closest to `word`, if any is close."""
    return difflib.get_close_matches(_NAMES_ELSEWHERE.get(word, word), list(known), n=1)


def _models(model: type[BaseModel], at: KeyPath = ()) -> Iterator[tuple[KeyPath, type[BaseModel]]]:
    """Every model of a recipe by pydantic's location; a mixer's location ends in its kind."""
    yield at, model
    for name, field in model.model_fields.items():
        for option in get_args(field.annotation) or (field.annotation,):
            if isinstance(option, type) and issubclass(option, BaseModel):
                kind = option.model_fields.get("kind")
                yield from _models(option, (*at, name, *((kind.default,) if kind else ())))
