"""Turns pydantic's errors into lines: `file: key.path = value: what is wrong; how to fix it`."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from moslora.choices import FORMER_NAMES

from .adapter import OURS, PEFTS
from .builtin import printable
from .elsewhere import answer, our_value, what_counts
from .layers import KeyPath, Layer, combine_layers, depth, origin_of
from .recipe import Recipe

_WORDS = {
    **dict.fromkeys(("dict_type", "model_attributes_type", "model_type"), "must be a mapping of keys"),
    "missing": "is missing; set it in this file, or extend a recipe that does",
    "tuple_type": "must be a list in brackets",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "string_type": "must be text, in quotes if YAML reads it as something else",
}
"""Pydantic's error types -> our text, where pydantic's is about Python."""

SECRETS = ("hf_hub_token", "hub_token", "token")
"""Keys of other programs whose values no message may show."""

_MIXERS_ELSEWHERE = {"lora": "identity", "moslora": "dense"}
"""Names in other tools and papers -> their names here."""


def fault_lines(error: ValidationError, layers: Sequence[Layer], *, main: str, complete: bool) -> Iterator[str]:
    """A line for each fault in pydantic's error of the merged layers.

    `main` is the recipe's own file, named for values that no file sets. If the layers are not `complete`, a missing
    value may be in a file that cannot be read.
    """
    values = combine_layers(layers)
    wrong = _wrong_fields(error, values)
    for path, details in wrong.items():
        # Every alternative of a union reports an error; one is noise if another alternative matched further in.
        noise = any(_begins(other, path) for other in wrong if other != path)
        missing = details[0]["type"] == "missing"
        if not noise and (complete or not missing):
            yield _line(layers, path, _message(details, path), main)
    if not complete:
        return
    for keys, message in _conflicts(error, values, wrong):
        paths: list[KeyPath] = [tuple(key.split(".")) for key in keys.split()]
        if not any(_is_wrong(path, wrong) for path in paths):
            yield _line(layers, _to_change(paths, layers, main), message, main)


def _wrong_fields(error: ValidationError, values: dict[str, Any]) -> dict[KeyPath, list[ErrorDetails]]:
    """Pydantic's errors of single fields, by their keys in ``values``."""
    wrong: dict[KeyPath, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        if detail["type"] != "conflict":
            wrong.setdefault(_key_path(detail, values), []).append(detail)
    return wrong


def _begins(path: KeyPath, beginning: KeyPath) -> bool:
    return path[: len(beginning)] == beginning


def _is_wrong(path: KeyPath, wrong: Mapping[KeyPath, Any]) -> bool:
    """Whether the field at ``path`` is wrong by itself, or one around it or in it."""
    return any(_begins(path, other) or _begins(other, path) for other in wrong)


def _to_change(paths: Sequence[KeyPath], layers: Sequence[Layer], main: str) -> KeyPath:
    """The one of ``paths`` that the user set most directly: typed, in the recipe's own file, or in another file."""
    values = combine_layers(layers)
    given = [path for path in paths if depth(values, path) == len(path)]
    if not given:
        given = list(paths)
    nearness = {"override": 0, main: 1, "default": 3}

    def distance(path: KeyPath) -> int:
        return nearness.get(origin_of(layers, path), 2)

    return min(given, key=distance)


def _conflicts(
    error: ValidationError, values: dict[str, Any], wrong: Mapping[KeyPath, list[ErrorDetails]]
) -> Iterator[tuple[str, str]]:
    """The broken rules between fields. Pydantic checks them only if all fields are valid: without the wrong ones."""
    if wrong:
        right = _without(values, wrong)
        model = {**right.get("model", {}), "name": "unknown"}
        right |= {"name": "unknown", "model": model}  # names have no default
        try:
            Recipe.model_validate(right)
            return
        except ValidationError as another:
            error = another
    for detail in error.errors(include_url=False):
        yield from detail.get("ctx", {}).get("conflicts", ())


def _without(values: dict[str, Any], wrong: Mapping[KeyPath, list[ErrorDetails]]) -> dict[str, Any]:
    """A copy of ``values`` without the wrong ones, a list without any if one of its items is wrong."""
    right = deepcopy(values)
    for path in sorted(wrong, key=len, reverse=True):
        if wrong[path][0]["type"] == "missing":
            continue
        *sections, last = path[: depth(values, path)]
        section = right
        for key in sections:
            section = section[key]
        section.pop(last, None)
    return right


def _key_path(error: ErrorDetails, values: Any) -> KeyPath:
    """The key of the error in `values`; pydantic's own location also names alternatives of unions."""
    path = []
    for step in error["loc"]:
        inside = values
        if isinstance(values, list):
            inside = dict(enumerate(values))
        if isinstance(inside, dict) and step in inside:
            values = inside[step]
            path.append(str(step))
    if error["type"] == "missing":
        path.append(str(error["loc"][-1]))
    elif error["type"] == "union_tag_invalid":
        path.append("kind")
    return tuple(path)


def _line(layers: Sequence[Layer], path: KeyPath, message: str, main: str) -> str:
    origin = origin_of(layers, path)
    if origin == "default":
        origin = main
    key = ".".join(map(printable, path))
    return f"{origin}: {key}{_shown(combine_layers(layers), path)}: {message}"


def _shown(values: Any, path: KeyPath) -> str:
    """` = value`, shortened; empty if there is none, or if it is a secret."""
    if not set(path).isdisjoint(SECRETS):
        return ""
    try:
        for key in path:
            if isinstance(values, list):
                values = values[int(key)]
            else:
                values = values[key]
        text = repr(values)
    except (TypeError, ValueError, LookupError):
        return ""
    if len(text) > 80:
        text = f"{text[:79]}…"
    return f" = {text}"


def _message(errors: list[ErrorDetails], path: KeyPath) -> str:
    first = errors[0]
    context = first.get("ctx", {})
    if path == ("adapter",) and isinstance(first["input"], str):  # axolotl's key, which names a method
        return "must be a mapping of keys; a method is chosen by extends, such as extends: methods/lora"
    match first["type"]:
        case "extra_forbidden":
            return _unknown(first["loc"], first["input"])
        case "value_error":
            return "; ".join(str(context["error"]).splitlines())
        case "union_tag_invalid":
            return _unknown_mixer(context["tag"], context["expected_tags"])
    texts = [_WORDS.get(error["type"], re.sub(r"^\w+ should ", "must ", error["msg"])) for error in errors]
    said = " or ".join(dict.fromkeys(texts)).replace(" or must ", " or ")
    if first["type"] == "literal_error":
        meant = _meant(str(first["input"]), context["expected"])
        if meant is not None:
            said += f"; did you mean {meant}?"
    if first["type"] == "int_type" and isinstance(first["input"], float):
        said += what_counts(".".join(path))
    return said


def _meant(value: str, expected: str) -> str | None:
    """The choice that had the name ``value`` in earlier versions, or has it elsewhere; ``expected`` are quoted."""
    choices = expected.split("'")[1::2]
    former = FORMER_NAMES.get(value)
    if former in choices:
        return former
    return our_value(value, choices)


def _unknown_mixer(kind: str, kinds: str) -> str:
    """What a mixer's kind must be; ``kinds`` are quoted, with commas."""
    meant = difflib.get_close_matches(_MIXERS_ELSEWHERE.get(kind, kind), kinds.split("'"), n=1)
    if meant:
        return f"must be one of {kinds}; did you mean {meant[0]}?"
    return f"must be one of {kinds}"


def _unknown(location: tuple[str | int, ...], value: Any) -> str:
    *section, key = map(str, location)
    if section[:1] == ["tasks"]:
        del section[1]  # the task's own name
    section = [step for step in section if step != OURS]
    if section[:1] != ["tasks"] and PEFTS not in section:  # where such a word may mean something else
        answered = answer(key, value, ".".join(section))
        if answered is not None:
            return f"unknown key; {answered}"
    models = dict(_models(Recipe))
    known = [*models[tuple(section)].model_fields]
    if not section:
        known.append("extends")
    close = difflib.get_close_matches(key, known, n=1)
    here = [step for step in section if step != PEFTS]
    for at, model in models.items():  # in another section, such as `learning_rate` at the top level
        place = [step for step in at if step != PEFTS]
        if key in model.model_fields and place[:2] != here[:2]:
            close.append(".".join((*place, key)))
    if close:
        return f"unknown key; did you mean {close[0]}?"
    return f"unknown key; must be one of {', '.join(known)}"


def _models(model: type[BaseModel], at: KeyPath = ()) -> Iterator[tuple[KeyPath, type[BaseModel]]]:
    """Every model of a recipe by pydantic's location; a mixer's ends in its kind, a section of PEFT in its tag."""
    yield at, model
    for name, field in model.model_fields.items():
        alternatives = get_args(field.annotation) or (field.annotation,)
        for alternative in alternatives:
            option = alternative
            marks: Sequence[Any] = ()
            if get_origin(alternative) is Annotated:
                option, *marks = get_args(alternative)
            if not isinstance(option, type) or not issubclass(option, BaseModel):
                continue
            tags = [mark.tag for mark in marks if mark.tag != OURS]
            kind = option.model_fields.get("kind")
            if kind is not None:
                tags = [kind.default]
            yield from _models(option, (*at, name, *tags))
