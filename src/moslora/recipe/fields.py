"""The base of a recipe's sections, and their own field types."""

import re
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, NonNegativeInt, Strict, WithJsonSchema

from moslora.schema import Listed, Share, StrictModel
from moslora.tasks import split_names

from .changes import Changes


class Section(StrictModel):
    """A section of a recipe.

    Attributes:
        changes: what another value of a field changes, unless the field says otherwise.
    """

    changes: ClassVar[Changes | None] = None


def _names(value: Any) -> Any:
    """`commonsense`, `boolq,piqa` or a list, as task names; other types are left to pydantic."""
    if isinstance(value, str | list | tuple) and all(isinstance(name, str) for name in value):
        return split_names(value)
    return value


def source_among(*keywords: str) -> BeforeValidator:
    """One of the keywords, or a path. A bare word is refused: it is likely a misspelt keyword."""

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
