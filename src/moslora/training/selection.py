"""What validations decide: which step is a run's result, and when the run ends before its last step."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moslora.recipe import TrainingSection
from moslora.runs.best import Best, best_of, in_words
from moslora.training.budget import RankBudget


@dataclass
class Selection:
    """The choice of a run's result by its validations, which are the same on every process.

    Attributes:
        keeps_best: whether the result is the best step, not the last.
        patience: validations in a row without a better one that end the run; ``None`` for no such end.
        first_candidate: the first step that may be chosen; earlier validations count for nothing.
        best: the best step so far.
    """

    keeps_best: bool = False
    patience: int | None = None
    first_candidate: int = 1
    best: Best = field(default_factory=Best)

    @classmethod
    def of(cls, settings: TrainingSection, budget: RankBudget | None) -> "Selection":
        """As the recipe says. Steps at which a rank budget still has entries to drop are not chosen."""
        first_candidate = budget.reached_at if budget is not None else 1
        return cls(settings.result == "best", settings.patience, first_candidate, Best(settings.best_by))

    @property
    def active(self) -> bool:
        """Whether anything depends on validations."""
        return self.keeps_best or self.patience is not None

    @property
    def patience_ran_out(self) -> bool:
        return self.best.has_run_out(self.patience)

    @property
    def facts(self) -> dict[str, Any]:
        """JSON values for a checkpoint's manifest, from which `restore` goes on."""
        if not self.active:
            return {}
        return self.best.facts

    def restore(self, manifest: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint's manifest."""
        best = best_of(manifest)
        if best is not None:
            self.best = best

    def add(self, step: int, value: float) -> bool:
        """Adds the validation of ``step``, of which ``value`` decides, and returns whether it is the best so far; the
        first of equals is."""
        if not self.active or step < self.first_candidate:
            return False
        self.best = self.best.after(step, value)
        return self.best.step == step

    def remark(self, step: int, *, start: float | None) -> list[str]:
        """What the validation of ``step`` decided, in words; no text if nothing. ``start`` is that before the first
        step, which no result may be."""
        best = self.best
        if best.step == step and best.value is not None and start is not None and best.prefers(start, best.value):
            side = "above" if best.by == "loss" else "below"
            return [f"best so far, but {side} the start ({in_words(start, best.by)})"]
        if best.step == step:
            return ["best so far"]
        if self.patience is not None and best.since:
            return [f"{best.since} of {self.patience} in a row without a better {best.by}"]
        return []

    @property
    def so_far(self) -> str:
        """The best step so far, for a live line; empty before the first."""
        best = self.best
        if best.value is None:
            return ""
        return f"best {in_words(best.value, best.by)} at step {best.step}"
