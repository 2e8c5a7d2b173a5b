"""Evaluation: multiple-choice questions scored by one of three protocols, with intervals and averages."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["Request", "Results", "Score", "evaluate"]

if TYPE_CHECKING:
    from moslora.evaluation.evaluator import evaluate
    from moslora.evaluation.request import Request
    from moslora.runs.results import Results
    from moslora.runs.scores import Score
else:
    _PLACES = {
        "Request": "evaluation.request",
        "Results": "runs.results",
        "Score": "runs.scores",
        "evaluate": "evaluation.evaluator",
    }

    def __getattr__(name: str) -> Any:
        """Imports a name when it is first used: what needs no torch must not wait for it."""
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"moslora.{_PLACES[name]}"), name)
