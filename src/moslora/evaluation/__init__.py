"""Evaluation: multiple-choice questions scored by one of three protocols, with intervals and averages."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["METRICS", "Evaluation", "Prediction", "Request", "Results", "Score", "Settings", "evaluate"]

if TYPE_CHECKING:
    from moslora.evaluation.journal import Evaluation
    from moslora.evaluation.predictions import METRICS, Prediction, Score
    from moslora.evaluation.results import Results, Settings
    from moslora.evaluation.run import evaluate
    from moslora.evaluation.scorer import Request
else:
    _PLACES = {
        "journal": ("Evaluation",),
        "predictions": ("METRICS", "Prediction", "Score"),
        "results": ("Results", "Settings"),
        "run": ("evaluate",),
        "scorer": ("Request",),
    }

    def __getattr__(name: str) -> Any:
        """Imports a name when it is first used: what needs no torch must not wait for it."""
        for place, names in _PLACES.items():
            if name in names:
                return getattr(import_module(f"{__name__}.{place}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
