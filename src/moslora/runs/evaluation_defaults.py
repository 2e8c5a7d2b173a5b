"""Default settings for the evaluation of exported weights: ``moslora.yaml``, a part of their run's recipe.

It has the section ``evaluation``, the prompt format, and the tasks with their sources. Files are named by absolute
paths, so that they are found from anywhere. Other readers of the folder ignore it.
"""

from pathlib import Path

from moslora.choices import DType
from moslora.files import write_text
from moslora.recipe import Recipe
from moslora.recipe.yaml_text import render
from moslora.runs.absolute_paths import make_absolute
from moslora.runs.manifest import written_recipe

EVALUATION_DEFAULTS = "moslora.yaml"


def write_evaluation_defaults(folder: Path, recipe: Recipe, *, dtype: DType, task: str | None) -> None:
    """Write the evaluation settings of ``recipe``; only ``task`` is asked if the weights' gate is fixed at it."""
    values = recipe.model_dump(mode="json", include={"data": {"source", "format"}, "evaluation": True, "tasks": True})
    values["evaluation"]["tasks"] = [task] if task else [entry.name for entry in recipe.questions.tasks]
    make_absolute(values)
    values = {"name": recipe.name, "model": {"name": ".", "dtype": dtype}, **values}
    write_text(folder / EVALUATION_DEFAULTS, render(values))


def read_evaluation_defaults(folder: Path) -> Recipe | None:
    """Evaluation settings of ``folder`` as a recipe whose model is the folder; ``None`` without ``moslora.yaml``."""
    file = folder / EVALUATION_DEFAULTS
    if not file.is_file():
        return None
    return written_recipe(file, by=None)
