"""The best step of a run by its validations, as manifests and ``run.json`` record it.

Importing this module does not load torch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from moslora.choices import BestBy
from moslora.recipe import TrainingSection

BEST = "best"
"""Key of a `Best` in the manifest of a checkpoint or a result, and in ``run.json``."""

TRAINED_STEPS = "trained_steps"
"""Key of the number of updates before the run ended, in the manifest of a result and in ``run.json``."""


@dataclass(frozen=True)
class Best:
    """Best validation of a run so far.

    Attributes:
        by: the metric that decides.
        step: number of updates before its best value, the first of equal ones; ``None`` before a finite value.
        value: lowest loss, in nats per label token, or highest accuracy, between 0 and 1.
        last: value of the last validation; ``None`` if it was not finite.
        validations: number of validations of steps that may become the result.
        since: number of validations after the best one.
    """

    by: BestBy = "loss"
    step: int | None = None
    value: float | None = None
    last: float | None = None
    validations: int = 0
    since: int = 0

    @property
    def facts(self) -> dict[str, Any]:
        """JSON values, which `best_of` reads back."""
        values = {
            "step": self.step,
            self.by: self.value,
            f"last_{self.by}": self.last,
            "validations": self.validations,
            "since": self.since,
        }
        return {BEST: values}

    def updated(self, step: int, value: float) -> "Best":
        """Return the best validation once ``step`` was validated with ``value``."""
        last = value if math.isfinite(value) else None
        counted = replace(self, last=last, validations=self.validations + 1, since=self.since + 1)
        if last is None or (self.value is not None and not self.prefers(value, self.value)):
            return counted
        return replace(counted, step=step, value=value, since=0)

    def prefers(self, value: float, other: float) -> bool:
        """Whether ``value`` is better than ``other``."""
        return value < other if self.by == "loss" else value > other

    def has_run_out(self, patience: int | None) -> bool:
        """Whether the last ``patience`` validations brought no better value."""
        return patience is not None and self.since >= patience

    def __str__(self) -> str:
        if self.value is None:
            return f"none of {self.validations} validation losses was finite"
        last = "not finite" if self.last is None else format_value(self.last, self.by)
        value = format_value(self.value, self.by)
        return f"step {self.step:,}, best of {self.validations:,} validations by {self.by} {value}; last {last}"


def format_value(value: float, by: BestBy) -> str:
    """Text of a loss, or of an accuracy in percent."""
    return f"{value:.4f}" if by == "loss" else f"{100 * value:.1f} %"


def best_of(facts: Mapping[str, Any]) -> Best | None:
    """Best validation that a manifest or a ``run.json`` records; ``None`` if validations could neither choose the
    result nor end the run."""
    values = facts.get(BEST)
    if values is None:
        return None
    by: BestBy = "accuracy" if "accuracy" in values else "loss"
    return Best(by, values["step"], values[by], values[f"last_{by}"], values["validations"], values["since"])


def result_step(facts: Mapping[str, Any], training: TrainingSection) -> int | None:
    """Step of a finished run's result; ``None`` if validations could neither choose the result nor end the run.

    Args:
        facts: content of its ``run.json``, or of its result's manifest.
        training: training section of its recipe.
    """
    best = best_of(facts)
    if best is None:
        return None
    return best.step if training.result == "best" else int(facts[TRAINED_STEPS])


def ending(facts: Mapping[str, Any], training: TrainingSection) -> list[str]:
    """Lines that say how validations chose the result of a finished run, and the step at which it ended. Arguments as
    for `result_step`."""
    best = best_of(facts)
    if best is None or TRAINED_STEPS not in facts:
        return []
    lines = []
    if training.result == "best":
        lines.append(str(best))
    if best.has_run_out(training.patience):
        lines.append(
            f"ended by training.patience after step {facts[TRAINED_STEPS]:,}: {best.since} validations without"
            f" a better {best.by}"
        )
    return lines
