"""The runs of a report, as far as they got."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from moslora.compare.arms import evaluated_steps, load_arms
from moslora.compare.index import is_experiment, read_index
from moslora.console import note
from moslora.errors import MosloraError, UsageError
from moslora.evaluation import Prediction, Results, load_predictions, load_results
from moslora.evaluation.results import RESULTS
from moslora.report.learned import LearnedLayer, learned_layers
from moslora.runs.adapter_folder import open_adapter
from moslora.runs.run import RUN, Run


@dataclass(frozen=True)
class Evaluated:
    """One evaluation of a run or of its base."""

    folder: Path

    @cached_property
    def results(self) -> Results:
        return load_results(self.folder)

    @cached_property
    def predictions(self) -> list[Prediction]:
        return load_predictions(self.folder)


@dataclass(frozen=True)
class ReportedRun:
    """One run with its evaluation and that of its base with the same settings, if they are there; ``arm`` is its own
    name, or that of the runs that differ from it only in the seed."""

    run: Run
    arm: str
    tuned: Evaluated | None = None
    base: Evaluated | None = None

    @property
    def name(self) -> str:
        return self.run.name

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric."""
        points = [(row["step"], row[name]) for row in self.run.metrics if row.get(name) is not None]
        return [step for step, _ in points], [value for _, value in points]

    @cached_property
    def layers(self) -> list[LearnedLayer]:
        """Of its adapter or newest checkpoint; none before the first."""
        adapters = self.run.adapters
        return learned_layers(open_adapter(adapters[0])) if adapters else []


def reported_runs(paths: Sequence[Path], *, evaluation: str | None = None) -> list[ReportedRun]:
    """The runs at ``paths``: runs, folders of runs, or experiments."""
    found: dict[Path, str | None] = {}
    for path in paths:
        if is_experiment(path):
            found |= {path / run.folder: run.arm for run in read_index(path).runs if (path / run.folder).is_dir()}
        elif (path / RUN).is_file():
            found[path] = None
        else:
            found |= {card.parent: None for card in sorted(path.glob(f"*/{RUN}"))}
    if not found:
        where = ", ".join(map(str, paths))
        raise UsageError(f"{where}: " + ("no runs here" if any(p.exists() for p in paths) else "no such run"))
    arms = _arms(list(found), evaluation)
    return [_reported(Run(path), arm or arms.get(path, Run(path).name), evaluation) for path, arm in found.items()]


def _arms(paths: Sequence[Path], evaluation: str | None) -> Mapping[Path, str]:
    """Path -> arm, where the runs can be grouped."""
    try:
        arms = load_arms(paths, evaluation=evaluation)
    except MosloraError:
        return {}
    return {path: arm.name for arm in arms for path in arm.paths.values()}


def _reported(run: Run, arm: str, evaluation: str | None) -> ReportedRun:
    try:
        folder = run.evaluation(evaluation)
        evaluated_steps(folder, of_run=True)  # refuses the scores of older weights
    except UsageError as fault:
        if evaluation:
            raise
        note(str(fault))
        return ReportedRun(run, arm)
    found = [Evaluated(place) for place in (folder, folder.with_name(f"{folder.name}-base"))]
    tuned, base = (one if (one.folder / RESULTS).is_file() else None for one in found)  # else interrupted, or not there
    return ReportedRun(run, arm, tuned, base)
