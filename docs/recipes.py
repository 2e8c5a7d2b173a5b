"""Prints `recipes.md`, the page of all fields of a recipe, from its models; `make docs` writes it."""

from collections.abc import Iterator
from typing import Any

from moslora.recipe import recipe_schema
from moslora.recipe.yaml_text import render_inline

_HEAD = """\
# Every field of a recipe

Written by `make docs` from the models in `src/moslora/recipe/`; change those, not this page.
[recipes/README.md](../recipes/README.md) says what recipes are, how they extend each other and how a value is
overridden. The key of a field is `section.field`, as in `training.learning_rate=1e-4`. A recipe may leave out
every field but `model.name`, and may have `extends:`. `src/moslora/recipe/rules.py` lists the values that do not go
together; the error names them as well.
"""

_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def reference() -> str:
    """The whole page: for each section a table of its fields with type, default and meaning."""
    schema = recipe_schema()
    return "\n".join([_HEAD, *_tables(schema, schema["$defs"], path="")])


def _tables(model: dict[str, Any], models: dict[str, Any], *, path: str) -> Iterator[str]:
    """The table of a model, and those of the models in its fields."""
    fields = {name: field for name, field in model["properties"].items() if name not in ("extends", "kind")}
    if not fields:
        return
    yield "| field | type | default | meaning |\n|---|---|---|---|"
    for name, field in fields.items():
        meaning = field.get("description") or _models(field, models)[0]["description"]
        default = _default(field) if path or "default" in field else "–"
        cells = (f"`{name}`", _type(field), default, " ".join(meaning.split()))
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    yield ""
    for name, field in fields.items():
        inside = f"{path}.{name}".removeprefix(".")
        for option in _models(field, models):
            kind = option["properties"].get("kind", {}).get("const")
            yield f"{'###' if path else '##'} `{inside}`{f', kind `{kind}`' if kind else ''}\n"
            yield f"{' '.join(option['description'].split())}\n"
            yield from _tables(option, models, path=inside)


def _models(field: dict[str, Any], models: dict[str, Any]) -> list[dict[str, Any]]:
    """The models that a field may hold."""
    options = [field, *field.get("anyOf", ())]
    return [models[option["$ref"].removeprefix("#/$defs/")] for option in options if "$ref" in option]


def _default(field: dict[str, Any]) -> str:
    if "default" not in field:
        return "required"
    value = field["default"]
    if isinstance(value, dict):
        return f"`{{kind: {value['kind']}}}`" if "kind" in value else "–"
    return f"`{render_inline(value)}`"


def _type(field: dict[str, Any]) -> str:
    """What a field may hold, in words."""
    if "$ref" in field:
        return "a section"
    if "anyOf" in field:
        return ", or ".join(dict.fromkeys(map(_type, field["anyOf"])))
    if "commonsense" in field.get("enum", ()):
        return "task names"
    if "const" in field or "enum" in field:
        return ", ".join(f"`{word}`" for word in field.get("enum", [field.get("const")]))
    bounds = ", ".join(f"{sign} {field[name]}" for name, sign in _BOUNDS.items() if name in field)
    match field.get("type"):
        case "array" if "prefixItems" in field:
            return f"[{', '.join(map(_type, field['prefixItems']))}]"
        case "array":
            return f"a list: {_type(field['items'])}"
        case "object":
            return f"a mapping to {_type(field['additionalProperties'])}"
        case "string" if field.get("pattern") == ",":
            return "several with commas"
        case name:
            words = {"integer": "integer", "number": "number", "string": "text", "boolean": "`true`, `false`"}
            return f"{words.get(str(name), str(name))} {bounds}".strip()


if __name__ == "__main__":
    print(reference(), end="")
