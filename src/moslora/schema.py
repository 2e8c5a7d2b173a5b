"""The base class and field types of everything that users write: strict, frozen, with a docstring under each field."""

import re
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError

Size = Annotated[int, Field(gt=0, le=65_536)]
"""A dimension. No layer of LLaMA is wider than 53,248."""


class StrictModel(BaseModel):
    """A frozen pydantic model that converts no types and refuses unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def _compiles(value: Any) -> Any:
    if isinstance(value, str):
        try:
            re.compile(value)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"is not a regular expression ({error}); fix the pattern") from error
    return value


Item = TypeVar("Item")

# YAML has only lists: `Strict(False)` accepts a list for a tuple. Its items stay strict.
Listed = Annotated[tuple[Item, ...], Strict(False)]
Filled = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Names = Annotated[Listed[Filled], Field(min_length=1)]
Regex = Annotated[Filled, BeforeValidator(_compiles)]
Modules = Annotated[Filled | Names, BeforeValidator(_compiles)]

Model = TypeVar("Model", bound=StrictModel)


def build_options(model: type[Model], **values: Any) -> Model:
    """Build ``model`` from arguments in Python, whose numbers may be numpy's.

    Raises:
        ValueError: a line for each wrong value: `key = value: what it must be`.
    """
    try:
        return model(**{key: value.item() if hasattr(value, "item") else value for key, value in values.items()})
    except ValidationError as error:
        lines = []
        for fault in error.errors(include_url=False, include_context=False):
            message = fault["msg"].removeprefix("Value error, ").replace("Input should", "must")
            lines.append(f"{fault['loc'][0]} = {fault['input']!r}: {message}")
        raise ValueError("\n".join(lines)) from None
