"""The base of what users write: strict and frozen, with a docstring under each field."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Size = Annotated[int, Field(gt=0, le=65_536)]
"""A dimension. No layer of LLaMA is wider than 53,248."""


class StrictModel(BaseModel):
    """Strict and frozen; unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def fault_lines(error: ValidationError) -> list[str]:
    """A line for each wrong value: `key = value: what it must be`."""
    lines: dict[str, str] = {}
    for fault in error.errors(include_url=False, include_context=False):
        key = str(fault["loc"][0])
        said = fault["msg"].removeprefix("Value error, ").replace("Input should", "must")
        lines.setdefault(key, f"{key} = {fault['input']!r}: {said}")
    return list(lines.values())
