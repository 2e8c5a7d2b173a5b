"""The JSON schema of a recipe file, for editors that complete and check while one types."""

from typing import Any

from .recipe import Recipe

_EXTENDS = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    "description": "A file, relative to this one, a shipped recipe, or a list of these, over which this file is laid.",
}


def recipe_schema() -> dict[str, Any]:
    """What one recipe *file* may hold: the fields of `Recipe` with their documentation, and `extends`.

    Nothing is required, unlike in a resolved recipe: the model may come from a file that is extended, the values from
    their defaults. So a mixer may lack its `kind`, and which kinds its keys fit is all that can be asked.
    """
    schema = Recipe.model_json_schema()
    models = [schema, *schema["$defs"].values()]
    for model in models:
        model.pop("required", None)
        for field in model.get("properties", {}).values():
            if field.pop("discriminator", None):
                field["anyOf"] = field.pop("oneOf")
            if "const" in field:
                field["description"] = "Which mixer stands between the factors."
            if "description" in field:
                field["description"] = " ".join(field["description"].split())
    schema["properties"] = {"extends": _EXTENDS, **schema["properties"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "moslora recipe"}
