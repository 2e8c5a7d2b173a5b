"""The base of what users write: strict and frozen, with a docstring under each field."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Size = Annotated[int, Field(gt=0, le=65_536)]
"""A dimension. No layer of LLaMA is wider than 53,248."""


class StrictModel(BaseModel):
    """Strict and frozen; unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
