"""Evaluation: multiple-choice questions scored by one of three protocols, with intervals and averages."""

from typing import TYPE_CHECKING, Any

from moslora.evaluation.request import Request

__all__ = ["Request", "evaluate"]

if TYPE_CHECKING:
    from moslora.evaluation.evaluator import evaluate
else:

    def __getattr__(name: str) -> Any:
        """Imports `evaluate` when it is first used: what needs no torch must not wait for it."""
        if name != "evaluate":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from moslora.evaluation.evaluator import evaluate

        return evaluate
