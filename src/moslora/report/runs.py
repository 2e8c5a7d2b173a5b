"""Runs of a report with their answers and metrics, also of unfinished runs."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from moslora.compare.arms import arms_of
from moslora.compare.comparable import is_base_of
from moslora.compare.compared_run import ComparedRun
from moslora.compare.find import as_arm, compared_run, runs_at
from moslora.console import note
from moslora.errors import MosloraError, UsageError, some
from moslora.report.learned import LearnedLayer, learned_layers
from moslora.runs.adapter_folder import open_adapter
from moslora.runs.evaluation import Evaluation, questions_in_common
from moslora.runs.run import Run


@dataclass
class ReportedRun:
    """A run of a report.

    Attributes:
        run: run folder.
        name: name of its folder, or its path if others have the same name.
        arm: name of its arm, shared by runs that differ only in the seed; its own name if it is alone.
        compared: its answers; ``None`` without a finished task.
        tuned: its answers to the questions that its base answered as well, or to all if there are none.
        base: answers of its base to the same questions; ``None`` without any.
        left_out: line on the questions that only one of the two answered; empty without any.
        base_name: "base", or "base of NAME" if the runs have several bases, or asked one in several ways.
    """

    run: Run
    name: str
    arm: str
    compared: ComparedRun | None = None
    tuned: ComparedRun | None = None
    base: Evaluation | None = None
    left_out: str = ""
    base_name: str = "base"

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """Rows of its ``metrics.jsonl``."""
        return self.run.metrics

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Return steps and values of a metric."""
        rows = [row for row in self.metrics if row.get(name) is not None]
        return [row["step"] for row in rows], [row[name] for row in rows]

    @cached_property
    def learned(self) -> list[LearnedLayer]:
        """Mixers of its adapter or newest checkpoint; empty before the first, or if its base is not found."""
        try:
            return [layer for adapter in self.run.adapters[:1] for layer in learned_layers(open_adapter(adapter))]
        except MosloraError as fault:
            note(str(fault))
            return []


def reported_runs(paths: Sequence[Path], *, evaluation: str | None = None) -> list[ReportedRun]:
    """Return the runs at ``paths``.

    Args:
        paths: runs, folders of runs, or experiments.
        evaluation: name of the evaluation's folder in a run; ``None`` for the only one, or the recipe's.
    """
    places = {folder: (path, arm) for path in paths for folder, arm in runs_at(path).items()}
    if not places:
        raise UsageError(f"{some(paths)}: no runs here; for a packed experiment use moslora compare")
    often = Counter(Run(folder).name for folder in places)
    runs = []
    for folder, (path, arm) in places.items():
        run = Run(folder)
        name = run.name if often[run.name] == 1 else str(folder)
        reported = ReportedRun(run, name, arm or name)
        _read_answers(reported, evaluation)
        if arm and reported.compared:
            reported.compared = as_arm(reported.compared, path, arm, as_planned=not evaluation)
        runs.append(reported)
    _name_arms(runs)
    _name_bases(runs)
    return runs


def _read_answers(reported: ReportedRun, evaluation: str | None) -> None:
    """Read the finished answers of a run and of its base."""
    try:
        compared = compared_run(reported.run.path, evaluation)  # refuses the scores of older weights
    except UsageError as fault:
        if evaluation:
            raise
        note(str(fault))
        return
    if not compared.tasks:
        return
    reported.compared = reported.tuned = compared
    base = compared.evaluation.base
    if base is None:
        return
    shared, reported.left_out = questions_in_common([compared.evaluation, base])
    if shared:
        reported.tuned = compared.only(shared)
        reported.base = base.only(shared)


def _name_arms(runs: Sequence[ReportedRun]) -> None:
    """Name the arms of scored runs that belong to no experiment, if they can be grouped."""
    unnamed = {run.compared.path: run for run in runs if run.compared and run.arm == run.name}
    with suppress(UsageError):
        for arm in arms_of([run.compared for run in unnamed.values() if run.compared]):
            for member in arm.runs.values():
                unnamed[member.path].arm = arm.name


def _name_bases(runs: Sequence[ReportedRun]) -> None:
    """Name each of several bases, or of one asked in several ways, after the first run that has it."""
    with_base = [(run, run.base) for run in runs if run.base]
    names = []
    for _, base in with_base:
        same_base = (run for run, other in with_base if is_base_of(other, [base]))
        names.append(next(same_base).name)
    if len(set(names)) > 1:
        for (run, _), name in zip(with_base, names, strict=True):
            run.base_name = f"base of {name}"
