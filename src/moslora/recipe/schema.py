"""The JSON schema of a recipe file, for completion and checks in an editor."""

from typing import Any

from .recipe import Recipe

_EXTENDS = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    "description": "The recipes that this file extends: a path relative to it, a built-in recipe, or a list of these.",
}


def recipe_schema() -> dict[str, Any]:
    """The schema of one recipe *file*: the fields of `Recipe` with their documentation, and `extends`.

    Nothing is required, unlike in a resolved recipe: any value may come from an extended file or a default. So a mixer
    may lack its `kind`, and is only checked against all kinds.
    """
    schema = Recipe.model_json_schema()
    models = [schema, *schema["$defs"].values()]
    for model in models:
        model.pop("required", None)
        for field in model.get("properties", {}).values():
            if field.pop("discriminator", None):
                field["anyOf"] = field.pop("oneOf")
            if "const" in field:
                field["description"] = "The kind of mixer."
            if "description" in field:
                field["description"] = " ".join(field["description"].split())
    schema["properties"] = {"extends": _EXTENDS, **schema["properties"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "moslora recipe"}
