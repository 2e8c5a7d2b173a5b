"""The recipe: the full description of one run, checked before anything is loaded."""

from .builtin import find_experiment, find_recipe, list_experiments, list_recipes
from .load import GONE, copy_recipe, load_recipe, resolve_tasks, stack_recipe, trace_recipe
from .recipe import Recipe
from .rules import PROTOCOLS
from .schema import recipe_schema
from .sections import (
    AdapterSection,
    DataSection,
    EvaluationSection,
    ModelSection,
    RankBudgetSection,
    TrackingSection,
    TrainingSection,
)

__all__ = [
    "GONE",
    "PROTOCOLS",
    "AdapterSection",
    "DataSection",
    "EvaluationSection",
    "ModelSection",
    "RankBudgetSection",
    "Recipe",
    "TrackingSection",
    "TrainingSection",
    "copy_recipe",
    "find_experiment",
    "find_recipe",
    "list_experiments",
    "list_recipes",
    "load_recipe",
    "recipe_schema",
    "resolve_tasks",
    "stack_recipe",
    "trace_recipe",
]
