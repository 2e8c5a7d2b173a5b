"""The search for the arms' learning rates: its runs, round by round, and what they chose."""

from dataclasses import dataclass, replace
from pathlib import Path

from moslora.compare.index import RateNoise, read_index
from moslora.experiment.curve import Curve, noise_of
from moslora.experiment.file import Experiment, Planned
from moslora.experiment.one_run import is_done, loss_at, planned_run, validation_loss


@dataclass(frozen=True)
class Search:
    """The search in an experiment's folder.

    Attributes:
        out: the folder.
        arms: those that are searched; one with a lone rate has nothing to search.
    """

    experiment: Experiment
    out: Path
    arms: tuple[str, ...]

    def curves(self) -> list[Curve]:
        """The arms' learning rates, as far as they are known."""
        seeds = self.experiment.file.rate_seeds
        noise = self.recorded_noise
        found = []
        for arm in self.arms:
            rates = self.experiment.file.rates(arm)
            losses = {rate: self._losses(arm, rate) for rate in rates}
            early = {}
            for share in seeds.halve_at:
                early[share] = {rate: self._losses(arm, rate, stop_at=share) for rate in rates}
            curve = Curve(
                arm,
                seeds=len(seeds.every_rate),
                losses=losses,
                more=len(seeds.close_rates),
                noise=noise,
                early=early,
            )
            found.append(curve)
        return found

    def _losses(self, arm: str, rate: float, *, stop_at: float | None = None) -> list[float]:
        """Those of the runs that are done, or have come to ``stop_at``, up to the first seed that is missing."""
        found = []
        for planned in self.experiment.planned([(arm, rate)], scored=False):
            run = planned_run(self.out, planned)
            if not is_done(self.out, replace(planned, stop_at=stop_at)):
                break
            if stop_at is None:
                found.append(validation_loss(run))
            else:
                found.append(loss_at(run, stop_at))
        return found

    def left(self) -> list[Planned]:
        """The runs of this round that are not done, seed after seed; none once every search is complete."""
        curves = self.curves()
        found = []
        for place, seed in enumerate(self.experiment.file.rate_seeds.all):
            for curve in curves:
                standing = curve.standing
                if len(curve.losses) == 1 or standing.complete or place >= standing.seeds:
                    continue
                choices = [(curve.arm, rate) for rate in standing.rates]
                for planned in self.experiment.planned(choices, scored=False, seeds=[seed]):
                    found.append(replace(planned, stop_at=standing.stop_at))
        return [planned for planned in found if not is_done(self.out, planned)]

    @property
    def recorded_noise(self) -> RateNoise | None:
        """The noise in ``experiment.json``. It stays what it was when the first arms had been searched, so that an arm
        which is added later changes no choice."""
        index = read_index(self.out)
        if index is None:
            return None
        return index.rate_noise

    def measured_noise(self) -> RateNoise | None:
        """The noise of these arms, once every rate has its seeds; ``None`` before, or if none is needed."""
        if not self.experiment.file.rate_seeds.close_rates:
            return None
        searched = [curve for curve in self.curves() if len(curve.losses) > 1]
        if not all(curve.has_first_seeds for curve in searched):
            return None
        return noise_of(searched)
