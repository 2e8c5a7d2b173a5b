"""From pydantic's errors to lines to act on: `file: key.path = value: what is wrong; the mend`."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from .layers import Given
from .rules import Conflict
from .shipped import printable
from .whole import Recipe

KeyPath = tuple[str, ...]

_MISSING = object()

_WANTED = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "a number > {gt}",
    "greater_than_equal": "a number >= {ge}",
    "int_type": "a whole number",
    "less_than": "a number < {lt}",
    "literal_error": "{expected}",
    "model_attributes_type": "a mapping of keys",
    "model_type": "a mapping of keys",
    "string_pattern_mismatch": "letters, digits, '_', '.' and '-', with a letter or digit first",
    "string_too_short": "some text",
    "string_type": "text",
    "too_long": "at most {max_length} items",
    "too_short": "at least {min_length} item",
    "tuple_type": "a list",
    "union_tag_invalid": "{expected_tags}",
}
"""Pydantic's error types -> what the field wants, with its context filled in."""


_NAMES_ELSEWHERE = {
    "lora": "identity",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "lr": "learning_rate",
    "moslora": "dense",
    "r": "rank",
}
"""What other tools and papers call a key or a mixer -> what it is called here."""


def fault_lines(given: Given, *, main: str, complete: bool, context: Mapping[str, bool] | None = None) -> Iterator[str]:
    """A line for each fault of a recipe, and none for a good one.

    Args:
        given: the merged layers.
        main: the recipe's own file, blamed for what no file gives.
        complete: whether all its files could be read; if not, what is missing may stand in one of them.
        context: of the validation.
    """
    values = given.plain()
    errors = _errors(values, context)
    wrong: dict[KeyPath, list[ErrorDetails]] = {}
    for error in errors:
        if error["type"] != "conflict":
            wrong.setdefault(_key_path(error, values), []).append(error)

    for path, found in wrong.items():
        if found[0]["type"] == "missing" and not complete:
            continue
        # Every alternative of a union reports itself: those that another one got further than are noise.
        if not any(other[: len(path)] == path for other in wrong if other != path):
            tag = ("kind",) if found[0]["type"] == "union_tag_invalid" else ()
            yield _line(given, (*path, *tag), _message(found), main)

    # Pydantic looks at combinations only when all fields are right: have it look without the wrong ones.
    for conflict in _conflicts(_errors(_without(values, wrong), context) if wrong else errors):
        paths = [tuple(path.split(".")) for path in conflict.paths]
        if complete and not any(_overlap(path, other) for path in paths for other in wrong):
            blamed = min(paths, key=lambda path: _distance(given, path, main))
            yield _line(given, blamed, conflict.message, main)


def _errors(values: Any, context: Mapping[str, bool] | None) -> list[ErrorDetails]:
    try:
        Recipe.model_validate(values, context=context)
    except ValidationError as error:
        return error.errors(include_url=False)
    return []


def _conflicts(errors: Iterable[ErrorDetails]) -> list[Conflict]:
    return [found for error in errors if error["type"] == "conflict" for found in error["ctx"]["conflicts"]]


def _key_path(error: ErrorDetails, values: Any) -> KeyPath:
    """Where the error lies in `values`; pydantic's own location also names alternatives of unions."""
    path = []
    here: Any = values
    for step in error["loc"]:
        inside = here if isinstance(here, dict) else dict(enumerate(here if isinstance(here, list) else ()))
        if step in inside:
            here = inside[step]
            path.append(str(step))
    if error["type"] == "missing" and isinstance(here, dict):
        path.append(str(error["loc"][-1]))
    return tuple(path)


def _without(values: dict[str, Any], paths: Iterable[KeyPath]) -> dict[str, Any]:
    """A copy of `values` with defaults in place of what lies at `paths`."""
    copy = deepcopy(values)
    for *parents, last in paths:
        here = copy
        for key in parents:
            if not isinstance(here.get(key), dict):  # an item of a list, which goes as a whole
                last = key
                break
            here = here[key]
        here.pop(last, None)
    # These two have no default, and no rule reads them.
    return copy | {"name": "unknown", "model": {**copy.get("model", {}), "name": "unknown"}}


def _distance(given: Given, path: KeyPath, main: str) -> int:
    """How far from the user's hand `path` is given: of a conflict's fields, the nearest is to be mended."""
    trail = given.trail(path)
    if len(trail) <= len(path) or trail[-1].origin == "default":
        return 3
    return {"override": 0, main: 1}.get(trail[-1].origin, 2)


def _overlap(one: KeyPath, other: KeyPath) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def _line(given: Given, path: KeyPath, message: str, main: str) -> str:
    trail = given.trail(path)
    origin = main if trail[-1].origin == "default" else trail[-1].origin
    value = trail[-1].plain()
    for key in path[len(trail) - 1 :]:  # beyond the mappings: into a list, or a key that is missing
        value = value[int(key)] if isinstance(value, list) else _MISSING
    text = repr(value)
    shown = "" if value is _MISSING else f" = {text if len(text) <= 80 else f'{text[:79]}…'}"
    return f"{origin}: {'.'.join(map(printable, path))}{shown}: {message}"


def _message(errors: list[ErrorDetails]) -> str:
    first = errors[0]
    if first["type"] == "missing":
        if isinstance(first["loc"][-1], int):
            return "has too few items"
        return "is missing; give it here, or extend a recipe that does"
    if first["type"] == "extra_forbidden":
        return _unknown(first["loc"])
    if first["type"] == "value_error":
        return "; ".join(str(first["ctx"]["error"]).splitlines())
    hint = ""
    if first["type"] == "union_tag_invalid":
        close = _closest(first["ctx"]["tag"], re.findall(r"'(.*?)'", first["ctx"]["expected_tags"]))
        hint = "".join(f"; did you mean {kind}?" for kind in close)
    elif first["loc"] == ("adapter", "mixer") and isinstance(word := first["input"], str):
        kinds = [at[2] for at, _ in _models(Recipe) if at[:2] == ("adapter", "mixer") and len(at) > 2]
        hint = "".join(f"; did you mean adapter.mixer.kind={kind}?" for kind in _closest(word, kinds))
    wanted = [_WANTED.get(error["type"], error["msg"]).format(**error.get("ctx", {})) for error in errors]
    return f"wants {' or '.join(dict.fromkeys(wanted))}{hint}"


def _unknown(location: tuple[str | int, ...]) -> str:
    *section, key = map(str, location)
    models = dict(_models(Recipe))
    known = list(models[tuple(section)].model_fields)
    close = _closest(key, known)
    key = _NAMES_ELSEWHERE.get(key, key)
    # The right key in the wrong section, such as `learning_rate` at the top level.
    elsewhere = [
        ".".join((*at, key))
        for at, model in models.items()
        if key in model.model_fields and at[:2] != tuple(section[:2])
    ]
    if close or elsewhere:
        return f"unknown key; did you mean {(close or elsewhere)[0]}?"
    return f"unknown key; known are {', '.join(known)}"


def _closest(word: str, known: Iterable[str]) -> list[str]:
    """What `word` was likely meant to be, if anything."""
    return difflib.get_close_matches(_NAMES_ELSEWHERE.get(word, word), list(known), n=1)


def _models(model: type[BaseModel], at: KeyPath = ()) -> Iterator[tuple[KeyPath, type[BaseModel]]]:
    """Every model of a recipe by its location as pydantic names it: a mixer's ends in its kind."""
    yield at, model
    for name, field in model.model_fields.items():
        for option in get_args(field.annotation) or (field.annotation,):
            if isinstance(option, type) and issubclass(option, BaseModel):
                kind = option.model_fields.get("kind")
                yield from _models(option, (*at, name, *(get_args(kind.annotation) if kind else ())))
