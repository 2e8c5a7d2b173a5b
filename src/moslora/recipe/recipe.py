"""The recipe as a whole: its sections, and the rules between them."""

from typing import Self

from pydantic import Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from .fields import Section
from .rules import conflicts
from .sections import (
    AdapterSection,
    DataSection,
    EvaluationSection,
    ModelSection,
    TrackingSection,
    TrainingSection,
)
from .yaml_text import render

WRITTEN = {"written": True}
"""Pydantic's context for the recipe of a training that has begun, to which the rules of beginning one do not apply."""


class Recipe(Section):
    """One run, resolved: what it starts from, what it does, and how it is measured."""

    name: str = Field(pattern=r"^\w[\w.-]*$")
    """Name of the run, and of its folder. The name of the recipe file unless given."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Fixes the start of the adapter, the draw and order of the rows, and dropout."""

    model: ModelSection
    adapter: AdapterSection = AdapterSection()
    data: DataSection = DataSection()
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()
    tracking: TrackingSection = TrackingSection()

    @property
    def evaluation_source(self) -> str:
        """Where the test questions come from; commonsense_170k, a training mix, is tested on the hub's."""
        if self.evaluation.source is not None:
            return self.evaluation.source
        return "hub" if self.data.source == "commonsense_170k" else self.data.source

    def to_yaml(self) -> str:
        """The recipe with every field written out, in declared order. `load_recipe` gives it back equal."""
        return render(self.model_dump(mode="json"))

    @model_validator(mode="after")
    def _possible(self, info: ValidationInfo) -> Self:
        found = [rule for rule in conflicts(self) if not (rule.beginning and info.context == WRITTEN)]
        if found:
            text = "\n".join(f"{rule.paths[0]}: {rule.message}" for rule in found)
            raise PydanticCustomError("conflict", "{text}", {"text": text, "conflicts": found})
        return self
