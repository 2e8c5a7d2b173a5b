"""Evaluation: multiple-choice questions scored by one of three protocols, with intervals and averages."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["Request", "Results", "Score", "evaluate", "read_results"]

if TYPE_CHECKING:
    from moslora.evaluation.evaluator import evaluate
    from moslora.evaluation.request import Request
    from moslora.evaluation.results import Results, read_results
    from moslora.evaluation.scores import Score
else:
    _PLACES = {
        "Request": "request",
        "Results": "results",
        "Score": "scores",
        "evaluate": "evaluator",
        "read_results": "results",
    }

    def __getattr__(name: str) -> Any:
        """Imports a name when it is first used: what needs no torch must not wait for it."""
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
