"""Evaluation: multiple-choice questions scored by one of three protocols, with intervals and averages."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["ModelFacts", "Request", "Results", "Score", "evaluate", "read_results"]

if TYPE_CHECKING:
    from moslora.evaluation.evaluator import ModelFacts, evaluate
    from moslora.evaluation.results import Results, read_results
    from moslora.evaluation.scorer import Request
    from moslora.evaluation.scores import Score
else:
    _PLACES = {
        "results": ("Results", "read_results"),
        "evaluator": ("evaluate", "ModelFacts"),
        "scorer": ("Request",),
        "scores": ("Score",),
    }

    def __getattr__(name: str) -> Any:
        """Imports a name when it is first used: what needs no torch must not wait for it."""
        for place, names in _PLACES.items():
            if name in names:
                return getattr(import_module(f"{__name__}.{place}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
