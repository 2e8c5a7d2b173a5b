"""The recipe: everything that one run is made of, checked before anything is loaded."""

from .load import copy_recipe, load_recipe
from .rules import PROTOCOLS
from .sections import (
    AdapterSection,
    ButterflyMixer,
    DataSection,
    DenseMixer,
    EvaluationSection,
    IdentityMixer,
    ModelSection,
    TrackingSection,
    TrainingSection,
)
from .shipped import find_recipe, list_recipes
from .whole import Recipe

__all__ = [
    "PROTOCOLS",
    "AdapterSection",
    "ButterflyMixer",
    "DataSection",
    "DenseMixer",
    "EvaluationSection",
    "IdentityMixer",
    "ModelSection",
    "Recipe",
    "TrackingSection",
    "TrainingSection",
    "copy_recipe",
    "find_recipe",
    "list_recipes",
    "load_recipe",
]
