"""The runs of a report, as far as they got."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from moslora.compare.arms import load_arms
from moslora.compare.find import Read, evaluated_steps, runs_at
from moslora.compare.runs import read_complete
from moslora.compare.tables import read_tables
from moslora.console import note
from moslora.errors import MosloraError, UsageError, some
from moslora.evaluation.results import Results, results_of
from moslora.report.learned import LearnedLayer, learned_layers
from moslora.runs.adapter_folder import open_adapter
from moslora.runs.best import Best
from moslora.runs.evaluation import Evaluation, in_common, is_evaluation, is_finished
from moslora.runs.run import Run, base_of
from moslora.runs.settings import read_head


@dataclass(frozen=True)
class ReportedRun:
    """One run of a report.

    Attributes:
        run: where it is.
        name: of its folder, or its path where others have the same name.
        arm: of the runs that differ from it only in the seed; its name if there are none.
        tuned: its evaluation, on the questions that its base answered, too; ``None`` if it is not finished.
        base: its base's, on the same questions; ``None`` if it has none of them.
        left_out: a line on the questions that only one of the two answered; empty if there are none.
        base_name: "base", or whose it is where the runs have several bases, or asked them other questions.
    """

    run: Run
    name: str
    arm: str
    tuned: Evaluation | None = None
    base: Evaluation | None = None
    left_out: str = ""
    base_name: str = "base"

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        return self.run.metrics  # which reads the file each time

    @cached_property
    def tuned_results(self) -> Results | None:
        return _results(self.tuned)

    @cached_property
    def base_results(self) -> Results | None:
        return _results(self.base)

    @cached_property
    def best(self) -> Best | None:
        return self.run.best  # likewise

    @cached_property
    def validation_loss(self) -> float | None:
        return self.run.validation_loss  # likewise

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric."""
        rows = [row for row in self.metrics if row.get(name) is not None]
        return [row["step"] for row in rows], [row[name] for row in rows]

    @cached_property
    def layers(self) -> list[LearnedLayer]:
        """The layers of its adapter or newest checkpoint; none before the first, or where its base is not found."""
        adapters = self.run.adapters
        if not adapters:
            return []
        try:
            return learned_layers(open_adapter(adapters[0]))
        except MosloraError as fault:
            note(str(fault))
            return []


def _results(evaluation: Evaluation | None) -> Results | None:
    if evaluation is None:
        return None
    return results_of(evaluation.settings, evaluation.tasks, evaluation.records)


def reported_runs(
    paths: Sequence[Path], *, evaluation: str | None = None, read: Read = read_complete
) -> list[ReportedRun]:
    """The runs at ``paths``.

    Args:
        paths: runs, folders of runs, or experiments.
        evaluation: name of the evaluation's folder in a run; ``None`` for the only one, or the recipe's.
        read: reads an evaluation.
    """
    found: dict[Path, str | None] = {}
    for path in paths:
        found |= runs_at(path)
    if not found:
        why = "no runs here"
        if any(read_tables(path) for path in paths):
            why = "an experiment in tables, without the runs that a report shows; moslora compare reads it"
        raise UsageError(f"{some([str(path) for path in paths])}: {why}")
    names = _names(list(found))
    arms = _arms(list(found), evaluation=evaluation, read=read)
    runs = []
    for path, planned_arm in found.items():
        arm = planned_arm or arms.get(path, names[path])
        run = ReportedRun(Run(path), names[path], arm)
        runs.append(_with_evaluations(run, evaluation=evaluation, read=read))
    return _with_base_names(runs)


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """The name of each run, or its path if others have the same name."""
    names = {path: Run(path).name for path in paths}
    often = Counter(names.values())
    for path, name in names.items():
        if often[name] > 1:
            names[path] = str(path)
    return names


def _arms(paths: Sequence[Path], *, evaluation: str | None, read: Read) -> dict[Path, str]:
    """The name of each run's arm; of none if they cannot be grouped."""
    try:
        arms = load_arms(paths, evaluation=evaluation, read=read)
    except MosloraError:
        return {}
    found = {}
    for arm in arms:
        for run in arm.runs.values():
            found[run.path] = arm.name
    return found


def _with_evaluations(run: ReportedRun, *, evaluation: str | None, read: Read) -> ReportedRun:
    """With its evaluation and that of its base, if they are finished."""
    try:
        folder = run.run.evaluation(evaluation)
        evaluated_steps(folder, read_head(folder).settings, of_run=True)  # refuses the scores of older weights
    except UsageError as fault:
        if evaluation:
            raise
        note(str(fault))
        return run
    tuned = _finished(folder, read)
    base = _finished(base_of(folder), read)
    if tuned is None or base is None:
        return replace(run, tuned=tuned, base=base)
    shared, line = in_common([tuned, base])
    if not shared:
        return replace(run, tuned=tuned, left_out=line)
    return replace(run, tuned=tuned.only(shared), base=base.only(shared), left_out=line)


def _finished(folder: Path, read: Read) -> Evaluation | None:
    """The evaluation in ``folder`` if it is finished."""
    if is_finished(folder):
        return read(folder)
    if is_evaluation(folder):
        note(f"{folder}: interrupted and left out; moslora eval continues it")
    return None


def _with_base_names(runs: Sequence[ReportedRun]) -> list[ReportedRun]:
    """The runs; each of several bases is named after the first run that has it."""
    names: dict[str, str] = {}
    keys = []
    for run in runs:
        key = ""
        if run.base:
            settings = run.base.settings
            weights = settings.metadata.get("fingerprint") or settings.metadata.get("base")
            questions = {task: len(answers.ids) for task, answers in run.base.tasks.items()}
            key = str({**settings.model, **settings.asked, **questions, "base": weights})
            names.setdefault(key, f"base of {run.name}")
        keys.append(key)
    if len(names) < 2:
        return list(runs)
    return [replace(run, base_name=names.get(key, run.base_name)) for run, key in zip(runs, keys, strict=True)]
