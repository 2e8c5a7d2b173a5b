"""What validations decide: which step is a run's result, and when the run ends before its last step."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moslora.recipe import TrainingSection
from moslora.runs.best import Best, best_of, format_value


@dataclass
class Selection:
    """The choice of a run's result by its validations, which are the same on every process.

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
        return self.best.has_run_out(self.training.patience)

    @property
    def facts(self) -> dict[str, Any]:
        """JSON values for a checkpoint's manifest, from which `restore` goes on."""
        return self.best.facts if self.training.is_selected else {}

    def restore(self, manifest: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint's manifest."""
        best = best_of(manifest)
        if best is not None:
            self.best = best

    def consider(self, step: int, value: float) -> bool:
        """Counts the validation of ``step``, of which ``value`` decides, and returns whether it is the best so far; the
        first of equals is."""
        if not self.training.is_selected or step < self.first_candidate:
            return False
        self.best = self.best.updated(step, value)
        return self.best.step == step

    def remark(self, step: int, *, start: float | None) -> str:
        """What the validation of ``step`` decided, in words; empty if nothing. ``start`` is that before the first
        step, which no result may be."""
        best = self.best
        if best.step == step and best.value is not None and start is not None and best.prefers(start, best.value):
            side = "above" if best.by == "loss" else "below"
            return f"best so far, but {side} the start ({format_value(start, best.by)})"
        if best.step == step:
            return "best so far"
        if self.training.patience is not None and best.since:
            return f"{best.since} of {self.training.patience} in a row without a better {best.by}"
        return ""

    @property
    def so_far(self) -> str:
        """The best step so far, for a live line; empty before the first."""
        best = self.best
        if best.value is None:
            return ""
        return f"best {format_value(best.value, best.by)} at step {best.step}"
