"""Recipe: the full description of one run, checked without torch before anything is loaded.

Fields and their ranges are in `sections` and `adapter`, rules between fields in `rules`.
"""

from .adapter import Adapter, AdapterSection, PeftSection
from .builtin import find_recipe, list_recipes
from .changes import KEPT, Changes
from .load import copy_recipe, load_recipe, override_recipe, resolve_tasks, rows_named, stack_recipe, trace_recipe
from .recipe import Recipe, recipe_schema
from .sections import DataSection, EvaluationSection, ModelSection, RankBudgetSection, TrainingSection

__all__ = ["KEPT", "Adapter", "AdapterSection", "Changes", "PeftSection", "Recipe"]
__all__ += ["DataSection", "EvaluationSection", "ModelSection", "RankBudgetSection", "TrainingSection"]
__all__ += ["copy_recipe", "find_recipe", "list_recipes", "load_recipe", "recipe_schema"]
__all__ += ["override_recipe", "resolve_tasks", "rows_named", "stack_recipe", "trace_recipe"]
