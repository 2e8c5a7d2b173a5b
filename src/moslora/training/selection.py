"""Choice of a run's result by its validations, and of the step at which it ends."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moslora.recipe import TrainingSection
from moslora.runs.best import Best, best_of, format_value


@dataclass
class Selection:
    """Choice of a run's result by its validations, the same on every process.

    Attributes:
        training: the recipe's settings.
        first_candidate: the first step that may be chosen; earlier validations count for nothing.
        best: the best step so far.
    """

    training: TrainingSection = field(default_factory=TrainingSection)
    first_candidate: int = 1
    best: Best = field(default_factory=Best)

    @property
    def patience_ran_out(self) -> bool:
        """Whether so many validations in a row were no better that the run ends."""
        return self.best.has_run_out(self.training.patience)

    @property
    def facts(self) -> dict[str, Any]:
        """JSON values for a checkpoint's manifest, from which `restore` continues."""
        return self.best.facts if self.training.is_selected else {}

    def restore(self, manifest: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's manifest."""
        best = best_of(manifest)
        if best is not None:
            self.best = best

    def consider(self, step: int, value: float) -> bool:
        """Count the validation of ``step``, and return whether its ``value`` is the best so far. Of equal values the
        first is the best. Nothing is counted where validations do not decide, or before ``first_candidate``."""
        if not self.training.is_selected or step < self.first_candidate:
            return False
        self.best = self.best.updated(step, value)
        return self.best.step == step

    def remark(self, step: int, *, start: float | None) -> str:
        """The decision on the validation of ``step`` in words; empty if it decided nothing. ``start`` is the value
        before the first step, which cannot be the result."""
        best = self.best
        if best.step == step and best.value is not None and start is not None and best.prefers(start, best.value):
            side = "above" if best.by == "loss" else "below"
            return f"best so far, but {side} the start ({format_value(start, best.by)})"
        if best.step == step:
            return "best so far"
        if self.training.patience is not None and best.since:
            return f"{best.since} of {self.training.patience} in a row without a better {best.by}"
        return ""
