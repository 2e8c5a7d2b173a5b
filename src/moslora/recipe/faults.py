"""Turns pydantic's errors into lines: `file: key.path = value: what is wrong; how to fix it`."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import reduce
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from moslora.choices import FORMER_NAMES

from .adapter import OURS, PEFTS
from .builtin import printable
from .layers import KeyPath, Layer, combine_layers, depth, origin_of
from .recipe import Recipe

_WORDS = {
    **dict.fromkeys(("dict_type", "model_attributes_type", "model_type"), "must be a mapping of keys"),
    "missing": "is missing; set it in this file, or extend a recipe that does",
    "tuple_type": "must be a list",
}
"""Pydantic's error types -> our text, where pydantic's is about Python."""

_KEYS_ELSEWHERE = {"lora_alpha": "alpha", "lora_dropout": "dropout", "lr": "learning_rate", "r": "rank"}
_MIXERS_ELSEWHERE = {"lora": "identity", "moslora": "dense"}
"""Names in other tools and papers -> their names here."""


def fault_lines(error: ValidationError, layers: Sequence[Layer], *, main: str, complete: bool) -> Iterator[str]:
    """A line for each fault in pydantic's error of the merged layers.

    `main` is the recipe's own file, named for values that no file sets. If the layers are not `complete`, a missing
    value may be in a file that cannot be read.
    """
    values = combine_layers(layers)
    wrong: dict[KeyPath, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        if detail["type"] != "conflict":
            wrong.setdefault(_key_path(detail, values), []).append(detail)
    for path, found in wrong.items():
        # Every alternative of a union reports an error; one is noise if another alternative matched further in.
        noise = any(other[: len(path)] == path for other in wrong if other != path)
        if not noise and (complete or found[0]["type"] != "missing"):
            yield _line(layers, path, _message(found), main)
    for keys, message in _conflicts(error, values, wrong) if complete else ():
        paths = [tuple(key.split(".")) for key in keys.split()]
        if not any(path[: len(other)] == other[: len(path)] for path in paths for other in wrong):
            # Reported at the field that the user set most directly.
            near = {"override": 0, main: 1, "default": 3}
            given = [path for path in paths if depth(values, path) == len(path)] or paths
            yield _line(layers, min(given, key=lambda path: near.get(origin_of(layers, path), 2)), message, main)


def _conflicts(
    error: ValidationError, values: dict[str, Any], wrong: Mapping[KeyPath, list[ErrorDetails]]
) -> Iterator[tuple[str, str]]:
    """The broken rules between fields. Pydantic checks them only if all fields are valid: without the wrong ones."""
    if wrong:
        right = deepcopy(values)
        for path in sorted(wrong, key=len, reverse=True):
            if wrong[path][0]["type"] != "missing":
                *parents, last = path[: depth(values, path)]  # a list goes with its items
                reduce(dict.__getitem__, parents, right).pop(last, None)
        right |= {"name": "unknown", "model": {**right.get("model", {}), "name": "unknown"}}  # names have no default
        try:
            Recipe.model_validate(right)
            return
        except ValidationError as another:
            error = another
    for detail in error.errors(include_url=False):
        yield from detail.get("ctx", {}).get("conflicts", ())


def _key_path(error: ErrorDetails, values: Any) -> KeyPath:
    """The key of the error in `values`; pydantic's own location also names alternatives of unions."""
    path = []
    for step in error["loc"]:
        inside = values if isinstance(values, dict) else dict(enumerate(values if isinstance(values, list) else ()))
        if step in inside:
            values = inside[step]
            path.append(str(step))
    beyond = {"missing": error["loc"][-1:], "union_tag_invalid": ("kind",)}.get(error["type"], ())
    return (*path, *map(str, beyond))


def _line(layers: Sequence[Layer], path: KeyPath, message: str, main: str) -> str:
    origin, value = origin_of(layers, path), combine_layers(layers)
    try:
        for key in path:
            value = value[int(key)] if isinstance(value, list) else value[key]
        text = repr(value)
        shown = f" = {text if len(text) <= 80 else f'{text[:79]}…'}"
    except (TypeError, ValueError, LookupError):  # the value is missing
        shown = ""
    return f"{main if origin == 'default' else origin}: {'.'.join(map(printable, path))}{shown}: {message}"


def _message(errors: list[ErrorDetails]) -> str:
    first, context = errors[0], errors[0].get("ctx", {})
    match first["type"]:
        case "extra_forbidden":
            return _unknown(first["loc"])
        case "value_error":
            return "; ".join(str(context["error"]).splitlines())
        case "union_tag_invalid":
            tag, tags = context["tag"], context["expected_tags"]
            close = difflib.get_close_matches(_MIXERS_ELSEWHERE.get(tag, tag), tags.split("'"), n=1)
            return "; ".join([f"must be one of {tags}", *(f"did you mean {meant}?" for meant in close)])
    texts = [_WORDS.get(error["type"], re.sub(r"^\w+ should ", "must ", error["msg"])) for error in errors]
    said = " or ".join(dict.fromkeys(texts)).replace(" or must ", " or ")
    if first["type"] == "literal_error":
        now = FORMER_NAMES.get(str(first["input"]))
        if f"'{now}'" in said:
            said += f"; did you mean {now}?"
    return said


def _unknown(location: tuple[str | int, ...]) -> str:
    *section, key = map(str, location)
    if section[:1] == ["tasks"]:
        del section[1]  # the task's own name
    section = [step for step in section if step != OURS]
    models, key = dict(_models(Recipe)), _KEYS_ELSEWHERE.get(key, key)
    known = [*models[tuple(section)].model_fields, *["extends"] * (not section)]
    close = difflib.get_close_matches(key, known, n=1)
    for at, model in models.items():  # in another section, such as `learning_rate` at the top level
        place = [step for step in at if step != PEFTS]
        if key in model.model_fields and place[:2] != [step for step in section if step != PEFTS][:2]:
            close.append(".".join((*place, key)))
    return f"unknown key; did you mean {close[0]}?" if close else f"unknown key; must be one of {', '.join(known)}"


def _models(model: type[BaseModel], at: KeyPath = ()) -> Iterator[tuple[KeyPath, type[BaseModel]]]:
    """Every model of a recipe by pydantic's location; a mixer's ends in its kind, a section of PEFT in its tag."""
    yield at, model
    for name, field in model.model_fields.items():
        for tagged in get_args(field.annotation) or (field.annotation,):
            option, *tags = get_args(tagged) if hasattr(tagged, "__metadata__") else (tagged,)
            if isinstance(option, type) and issubclass(option, BaseModel):
                kind = option.model_fields.get("kind")
                tags = [kind.default] if kind else [tag.tag for tag in tags if tag.tag != OURS]
                yield from _models(option, (*at, name, *tags))
