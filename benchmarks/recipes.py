"""Print `docs/recipes.md`, the reference of all recipe fields, from the models; `make docs` writes it."""

from collections.abc import Iterator
from typing import Any

from moslora.recipe import Recipe, recipe_schema
from moslora.recipe.changes import Changes, changes_at
from moslora.recipe.yaml_text import render_inline

_CHANGES = ",\n".join(f"*{one.name.lower()}* {one.value}" for one in Changes)

_HEAD = f"""\
# Every field of a recipe

[recipes/README.md](../recipes/README.md) explains recipes, `extends` and overrides. The key of a field is
`section.field`, as in `training.learning_rate=1e-4`. Only `model.name` is required.

A field's default comes first, then its type. The word before a meaning says what another value of the field changes:
{_CHANGES}.

A resumed run must keep all but *place*, *computed*, *written* and *asked*. Runs of one arm of a comparison have equal
*trained*, *rows*, *base* and *start*.

`make docs` generates this page from the models in `src/moslora/recipe/`.
"""

_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def reference() -> str:
    """The page: for each section a table of its fields with type, default and meaning."""
    schema = recipe_schema()
    return "\n".join([_HEAD, *_tables(schema, schema["$defs"], path="")])


def _tables(model: dict[str, Any], models: dict[str, Any], *, path: str) -> Iterator[str]:
    """The table of a model, then those of the models in its fields; a field of several kinds has one for all."""
    yield "| field | default, type | meaning |\n|---|---|---|"
    yield from _rows(model, models, path=path)
    yield ""
    for name, field in model["properties"].items():
        options = _models(field, models)
        if not options:
            continue
        inside = f"{path}.{name}".removeprefix(".")
        yield f"{'###' if path else '##'} `{inside}`\n"
        if len(options) > 1 and "kind" in options[0]["properties"]:
            yield "| kind | field | default, type | meaning |\n|---|---|---|---|"
            for option in options:
                kind = option["properties"]["kind"]["const"]
                yield f"| `{kind}` | | | {_cell(option['description'])} |"
                for row in _rows(option, models, path=inside):
                    yield f"| {row}"
            yield ""
            continue
        for option in options:
            if "description" in field:  # otherwise the table above has it
                yield f"{_cell(option['description'])}\n"
            yield from _tables(option, models, path=inside)


def _rows(model: dict[str, Any], models: dict[str, Any], *, path: str) -> Iterator[str]:
    """A row for each field: its name, default and type, and its meaning behind the word for what it changes."""
    for name, field in model["properties"].items():
        if name in ("extends", "kind"):
            continue
        meaning = field.get("description") or _models(field, models)[0]["description"]
        changes = _changes(f"{path}.{name}".removeprefix("."))
        default = _default(field) if path or "default" in field else ""
        cells = [f"`{name}`", ", ".join(filter(None, (default, _type(field)))), f"{changes}{meaning}"]
        yield f"| {' | '.join(map(_cell, cells))} |"


def _changes(key: str) -> str:
    """What another value of the field changes; nothing for a section, whose fields say it."""
    section, _, inside = key.partition(".")
    if section == "tasks" and inside:
        key = f"tasks.*.{inside}"
    try:
        return f"*{changes_at(Recipe, key).name.lower()}*: "
    except LookupError:
        return ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def _models(field: dict[str, Any], models: dict[str, Any]) -> list[dict[str, Any]]:
    """The models that a field may hold."""
    options = [field, field.get("additionalProperties") or {}, *field.get("anyOf", ())]
    return [models[option["$ref"].removeprefix("#/$defs/")] for option in options if "$ref" in option]


def _default(field: dict[str, Any]) -> str:
    if "default" not in field:
        return "required"
    value = field["default"]
    if isinstance(value, dict):
        return f"`{{kind: {value['kind']}}}`" if "kind" in value else ""
    return f"`{render_inline(value)}`"


def _type(field: dict[str, Any]) -> str:
    """The type of a field in words."""
    if "$ref" in field:
        return "section"
    if "anyOf" in field:
        types = [_type(option) for option in field["anyOf"] if option != {"type": "null"}]  # null is the default there
        return " or ".join(dict.fromkeys(types))
    if "const" in field or "enum" in field:
        return "/".join(f"`{word}`" for word in field.get("enum", [field.get("const")]))
    bounds = " ".join(f"{sign}{field[name]}" for name, sign in _BOUNDS.items() if name in field)
    match field.get("type"):
        case "array" if "prefixItems" in field:
            return f"[{', '.join(map(_type, field['prefixItems']))}]"
        case "array":
            return f"list of {_type(field['items'])}"
        case "object":
            inside = field["additionalProperties"]
            return "sections by name" if "$ref" in inside else f"mapping to {_type(inside)}"
        case name:
            words = {"integer": "integer", "number": "number", "string": "text", "boolean": ""}
            return f"{words.get(str(name), str(name))} {bounds}".strip()


if __name__ == "__main__":
    print(reference(), end="")
