"""Base class of a recipe's sections, and their field types."""

import re
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, NonNegativeInt, Strict, WithJsonSchema

from moslora.schema import Listed, Share, StrictModel
from moslora.tasks import split_names

from .changes import Changes


class Section(StrictModel):
    """A section of a recipe.

    Attributes:
        changes: mark of all fields that have no mark of their own.
    """

    changes: ClassVar[Changes | None] = None


def _names(value: Any) -> Any:
    """Split `commonsense`, `boolq,piqa` or a list into task names; pydantic refuses other types."""
    if isinstance(value, str | list | tuple) and all(isinstance(name, str) for name in value):
        return split_names(value)
    return value


def source_among(*keywords: str) -> BeforeValidator:
    """Build a validator for one of the keywords or a path, which refuses a bare word as a misspelt keyword."""

    def check(value: Any) -> Any:
        if isinstance(value, str) and value not in keywords and not re.search("[./]", value):
            raise ValueError(f"must be one of {', '.join(keywords)}, or a path such as ./data")
        return value

    return BeforeValidator(check)


Skipped = Annotated[NonNegativeInt, Field(multiple_of=64)]
Shares = Annotated[tuple[Share, Share], Strict(False)]
TaskNames = Annotated[
    Listed[str],
    Field(min_length=1),
    BeforeValidator(_names),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}),
]
