"""The table of wrong turns, by group: how each comes about, what is typed, the exit code, and what the line says."""

from collections.abc import Mapping

from wrong_turns.adapters import ADAPTERS
from wrong_turns.data import DATA
from wrong_turns.evaluation import EVALUATION
from wrong_turns.imports import IMPORTS
from wrong_turns.models import MODELS
from wrong_turns.output import OUTPUT
from wrong_turns.recipes import RECIPES
from wrong_turns.reports import REPORTS
from wrong_turns.scene import Scene, Turn, release
from wrong_turns.stops import STOPS
from wrong_turns.studies import STUDIES

TABLE: Mapping[str, Mapping[str, Turn]] = {
    "Recipes and the command line": RECIPES,
    "Base models": MODELS,
    "Runs and adapter folders": ADAPTERS,
    "Data": DATA,
    "Evaluation": EVALUATION,
    "Output folders and disks": OUTPUT,
    "Adapters of others": IMPORTS,
    "Reproducing and reporting": REPORTS,
    "Stops": STOPS,
    "Experiments": STUDIES,
}
"""Group -> situation -> turn."""

__all__ = ["TABLE", "Scene", "Turn", "release"]
