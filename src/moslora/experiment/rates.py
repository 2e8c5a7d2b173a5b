"""The choice of the learning rate: per arm the lowest mean validation loss over the search's own seeds."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import TypeAdapter, ValidationError

from moslora.errors import MosloraError
from moslora.experiment.file import Experiment, run_name
from moslora.training.tracking import read_metrics

FOLDER = "rates"
"""In an experiment's folder: one small file per run of the search."""


@dataclass(frozen=True)
class RateResult:
    """The end of a run that only chooses the rate.

    Attributes:
        validation_loss: after the last step; ``None`` if it was not finite.
        recipe: how it was trained, every field.
        provenance: of `moslora.experiment.provenance.provenance`.
    """

    validation_loss: float | None
    recipe: Mapping[str, Any]
    provenance: Mapping[str, str]


def rate_file(out: Path, arm: str, rate: float, seed: int) -> Path:
    return out / FOLDER / f"{run_name(arm, rate, seed)}.json"


def read_rate(file: Path) -> RateResult | None:
    """``None`` if there is no such file.

    Raises:
        MosloraError: it is something else.
    """
    try:
        return TypeAdapter(RateResult).validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        raise MosloraError(f"{file}: not a result of an experiment; remove it, and that run is repeated") from None


def validation_loss(run: Path) -> float | None:
    """The last one in a finished run's ``metrics.jsonl``."""
    loss: float | None = [row["validation_loss"] for row in read_metrics(run) if "validation_loss" in row][-1]
    return loss


@dataclass(frozen=True)
class Curve:
    """Validation losses of one arm by rate, a list over the seeds that have run; infinite if not finite."""

    arm: str
    seeds: int
    losses: Mapping[float, list[float]]

    @property
    def best(self) -> float | None:
        """The chosen rate; ``None`` while runs are missing, or if no loss was finite. A lone rate needs no run."""
        if len(self.losses) == 1:
            return next(iter(self.losses))
        if not self.complete:
            return None
        means = {rate: fmean(losses) for rate, losses in self.losses.items()}
        best = min(means, key=means.__getitem__)
        return best if math.isfinite(means[best]) else None

    @property
    def complete(self) -> bool:
        """Whether every run of the search is done."""
        return all(len(losses) == self.seeds for losses in self.losses.values())

    def remarks(self) -> Iterator[str]:
        """If no rate was good, or the best is the lowest or the highest: the optimum may lie beyond."""
        rates = sorted(self.losses)
        if self.complete and self.best is None:
            yield f"{self.arm}: no learning rate had a finite validation loss, so it has no scored runs; add lower ones"
        elif len(rates) > 1 and (best := self.best) in (rates[0], rates[-1]):
            side = "lowest" if best == rates[0] else "highest"
            yield f"{self.arm}: {best:g} is the {side} learning rate tried; one beyond it may be better"


def curves(experiment: Experiment, out: Path, arms: tuple[str, ...]) -> list[Curve]:
    """What the search has found so far."""
    file = experiment.file

    def losses(arm: str, rate: float) -> list[float]:
        found = (read_rate(rate_file(out, arm, rate, seed)) for seed in file.rate_seeds)
        return [math.inf if one.validation_loss is None else one.validation_loss for one in found if one]

    return [Curve(arm, len(file.rate_seeds), {rate: losses(arm, rate) for rate in file.learning_rates}) for arm in arms]


def rate_table(found: list[Curve]) -> list[list[str]]:
    """Arms × rates: the mean validation loss, ± half the range where there are several seeds; a * marks the choice."""
    rates = list(found[0].losses)

    def cell(curve: Curve, rate: float) -> str:
        losses = curve.losses[rate]
        if not losses:
            return "–"
        some = f" ({len(losses)} of {curve.seeds})" if len(losses) < curve.seeds else ""
        if not math.isfinite(sum(losses)):
            return f"not finite{some}"
        spread = f" ± {(max(losses) - min(losses)) / 2:.4f}" if len(losses) > 1 else ""
        return f"{fmean(losses):.4f}{spread}{some}" + " *" * (rate == curve.best)

    return [
        ["validation loss at learning rate", *(f"{rate:g}" for rate in rates)],
        *([curve.arm, *(cell(curve, rate) for rate in rates)] for curve in found),
    ]
