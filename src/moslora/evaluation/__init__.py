"""Evaluation: score models and servers on questions and texts by three protocols, and label rows with answers.

`evaluate_target` carries out `moslora eval`, and `journal` writes its files. Reading results and comparing them
belongs to `moslora.runs` and `moslora.compare`.
"""

from typing import TYPE_CHECKING, Any

from moslora.evaluation.request import Request

__all__ = ["Request", "evaluate"]

if TYPE_CHECKING:
    from moslora.evaluation.evaluator import evaluate
else:

    def __getattr__(name: str) -> Any:
        """Import `evaluate` on first use, so that importing this package does not load torch."""
        if name != "evaluate":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from moslora.evaluation.evaluator import evaluate

        return evaluate
