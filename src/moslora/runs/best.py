"""The best step of a run by its validation loss, as manifests and ``run.json`` have it.

Importing this does not load torch.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from moslora.recipe import TrainingSection

BEST = "best"
"""Key of a `Best` in the manifest of a checkpoint or a result, and in ``run.json``."""

TRAINED_STEPS = "trained_steps"
"""Key beside it, in the manifest of a result and in ``run.json``: number of updates before the run ended."""


@dataclass(frozen=True)
class Best:
    """What the validations of a run have shown so far.

    Attributes:
        step: number of updates before the lowest loss, the first of equals; ``None`` before the first finite one.
        loss: the lowest loss, in nats per label token.
        last_loss: that of the last validation; ``None`` if it was not finite.
        validations: number of validations, of candidates alone.
        since: number of those after the best.
    """

    step: int | None = None
    loss: float | None = None
    last_loss: float | None = None
    validations: int = 0
    since: int = 0

    @property
    def facts(self) -> dict[str, Any]:
        """JSON values, from which `best_of` reads it back equal."""
        return {BEST: asdict(self)}

    def after(self, step: int, loss: float) -> "Best":
        """What is known once ``step`` had this validation loss."""
        validations = self.validations + 1
        if not math.isfinite(loss):
            return replace(self, last_loss=None, validations=validations, since=self.since + 1)
        if self.loss is None or loss < self.loss:
            return Best(step, loss, last_loss=loss, validations=validations)
        return replace(self, last_loss=loss, validations=validations, since=self.since + 1)

    def has_run_out(self, patience: int | None) -> bool:
        """Whether so many validations in a row had no lower loss."""
        return patience is not None and self.since >= patience

    def __str__(self) -> str:
        if self.loss is None:
            return f"none of {self.validations} validation losses was finite"
        last = "not finite"
        if self.last_loss is not None:
            last = f"{self.last_loss:.4f}"
        return f"step {self.step:,}, best of {self.validations:,} validations by loss {self.loss:.4f}; last {last}"


def best_of(facts: Mapping[str, Any]) -> Best | None:
    """What a manifest or a ``run.json`` says; ``None`` if the run asked no validation."""
    found = facts.get(BEST)
    if found is None:
        return None
    return Best(**found)


def result_step(facts: Mapping[str, Any], training: TrainingSection) -> int | None:
    """The step of a finished run's result; ``None`` where no validation had a say in it.

    Args:
        facts: of its ``run.json``, or of its result's manifest.
        training: its settings.
    """
    best = best_of(facts)
    if best is None:
        return None
    if training.result == "best":
        return best.step
    trained: int = facts[TRAINED_STEPS]
    return trained


def ending(facts: Mapping[str, Any], training: TrainingSection) -> list[str]:
    """How validations chose a finished run's result and its end, a line each; the arguments as for `result_step`."""
    best = best_of(facts)
    if best is None or TRAINED_STEPS not in facts:
        return []
    lines = []
    if training.result == "best":
        lines.append(str(best))
    if best.has_run_out(training.patience):
        lines.append(
            f"ended by training.patience after step {facts[TRAINED_STEPS]:,}: {best.since} validations without a lower"
            " loss"
        )
    return lines
