"""Pydantic's errors as lines: `file: key.path = value: what is wrong; how to fix it`."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from moslora.errors import did_you_mean, near_words

from .adapter import PeftSection
from .builtin import printable
from .changes import models_in
from .layers import KeyPath, Layer, combine_layers, depth, origin_of
from .other_programs import answer, our_value, what_counts
from .recipe import Recipe

_WORDS = {
    **dict.fromkeys(("dict_type", "model_attributes_type", "model_type"), "must be a mapping of keys"),
    "missing": "is missing; set it in this file, or extend a recipe that does",
    "tuple_type": "must be a list in brackets",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "string_type": "must be text, in quotes if YAML reads it as something else",
}
"""Our texts for pydantic's error types whose own text is about Python."""

_PATTERNS = {
    r"\{question\}": "must contain {question}, and may contain {context}",
    "^[A-Za-z]+$": "must be letters alone",
    r"^\w[\w.-]*$": "must be letters, digits, _, - and points, and not begin with - or a point",
    r"^[\w.-]+(/[\w.-]+)+$": "must be a folder and a part, such as nq_open/none",
}
"""Our texts for the patterns of fields."""

SECRETS = ("hf_hub_token", "hub_token", "token")
"""Keys of other programs whose values messages must not show."""


def fault_lines(error: ValidationError, layers: Sequence[Layer], *, main: str, complete: bool) -> Iterator[str]:
    """Yield a line for each fault in pydantic's error of the merged layers.

    Args:
        error: of the fields, or, if every field is valid, of the rules between fields.
        layers: the files and overrides, to find the origin of a value.
        main: the recipe's own file, named for values that no file sets.
        complete: whether all files were read; if not, a missing value may be in a file that cannot be read.
    """
    values = combine_layers(layers)
    wrong: dict[KeyPath, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        wrong.setdefault(_key_path(detail, values), []).append(detail)
    for path, details in wrong.items():
        first = details[0]
        # Every alternative of a union reports an error; one is noise if another alternative matched further in.
        noise = any(other[: len(path)] == path for other in wrong if other != path)
        if noise or (not complete and first["type"] in ("missing", "conflict")):
            continue
        if first["type"] != "conflict":
            yield _line(layers, path, _message(details, path), main)
            continue
        for keys, message in first["ctx"]["conflicts"]:
            paths: list[KeyPath] = [tuple(key.split(".")) for key in keys.split()]
            given = [path for path in paths if depth(values, path) == len(path)] or paths
            yield _line(layers, given[0], message, main)


def _key_path(error: ErrorDetails, values: Any) -> KeyPath:
    """Find the key of the error in `values`; pydantic's own location also names alternatives of unions."""
    path = []
    for step in error["loc"]:
        inside = dict(enumerate(values)) if isinstance(values, list) else values
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
    """Write ` = value`, shortened; empty if there is no value, or if it is a secret."""
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
    if path == ("adapter",) and isinstance(first["input"], str):  # a method's name, as in axolotl
        return "must be a mapping of keys; to choose a method, extend its recipe: extends: methods/lora"
    match first["type"]:
        case "extra_forbidden":
            return _unknown(first["loc"], path, first["input"])
        case "value_error":
            return "; ".join(str(context["error"]).splitlines())
        case "string_pattern_mismatch":
            return _PATTERNS[context["pattern"]]
        case "union_tag_invalid":
            kinds = context["expected_tags"]
            return f"must be one of {kinds}{_meant(context['tag'], kinds)}"
    texts = [_WORDS.get(error["type"], re.sub(r"^\w+ should ", "must ", error["msg"])) for error in errors]
    message = " or ".join(dict.fromkeys(texts)).replace(" or must ", " or ")
    if first["type"] == "literal_error":
        message += _meant(str(first["input"]), context["expected"])
    if first["type"] == "int_type" and isinstance(first["input"], float):
        message += what_counts(".".join(path))
    return message


def _meant(value: str, expected: str) -> str:
    """Suggest the choice that another program calls ``value``, or the closest one; ``expected`` quotes the choices."""
    choices = expected.split("'")[1::2]
    meant = our_value(value, choices) or "".join(near_words(value, choices))
    return f"; did you mean {meant}?" if meant else ""


def _unknown(location: tuple[str | int, ...], path: KeyPath, value: Any) -> str:
    """Write the message about an unknown key at ``path``; pydantic's ``location`` says which alternative it is in."""
    *at, key = path
    if at[:1] == ["tasks"]:
        del at[1]  # the task's own name
    elif PeftSection.__name__ not in location:  # PEFT's own keys may have another meaning there
        answered = answer(key, value, ".".join(at))
        if answered is not None:
            return f"unknown key; {answered}"
    sections = [section for place, section in _every_section(Recipe) if place == at]
    if len(sections) > 1:  # alternatives, which pydantic names by the kind of a mixer, or else by their class
        sections = [section for section in sections if _name_of(section) in location]
    keys = [name for section in sections for name in section.model_fields]
    if not at:
        keys.append("extends")
    close = near_words(key, keys)
    for place, section in _every_section(Recipe):  # such as `learning_rate` at the top level
        if key in section.model_fields and place[:2] != at[:2]:
            close.append(".".join((*place, key)))
    fix = did_you_mean(close[:1], otherwise=f"must be one of {', '.join(keys)}")
    return f"unknown key; {fix}"


def _name_of(section: type[BaseModel]) -> str:
    kind = section.model_fields.get("kind")
    return str(kind.default) if kind else section.__name__


def _every_section(model: type[BaseModel], at: tuple[str, ...] = ()) -> Iterator[tuple[list[str], type[BaseModel]]]:
    """Yield the keys that lead to each section of a recipe, and the section; first the recipe itself, without keys."""
    yield [*at], model
    for name, field in model.model_fields.items():
        for section in models_in(field.annotation):
            yield from _every_section(section, (*at, name))
