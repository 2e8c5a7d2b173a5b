"""The runs of a report, as far as they got."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from moslora.compare.arms import load_arms
from moslora.compare.find import evaluated_steps, runs_at
from moslora.compare.runs import in_common, read_complete
from moslora.console import note
from moslora.errors import MosloraError, UsageError
from moslora.evaluation.results import Results, results_of
from moslora.report.learned import LearnedLayer, learned_layers
from moslora.runs.adapter_folder import open_adapter
from moslora.runs.evaluation import Evaluation, Questions
from moslora.runs.run import RESULTS, SETTINGS, Run, base_of
from moslora.runs.settings import Settings, read_head


@dataclass(frozen=True)
class ReportedRun:
    """One run with its evaluation and that of its base with the same settings, if they are there, on the questions that
    they share. ``name`` is its folder's, or where others have the same its path; ``arm`` the same, or that of the runs
    that differ from it only in the seed. ``base_name`` is "base", and where the runs have several bases, or asked them
    in several ways, also what tells them apart."""

    run: Run
    name: str
    arm: str
    tuned: Evaluation | None = None
    base: Evaluation | None = None
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

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric."""
        points = [(row["step"], row[name]) for row in self.metrics if row.get(name) is not None]
        return [step for step, _ in points], [value for _, value in points]

    @cached_property
    def layers(self) -> list[LearnedLayer]:
        """The layers of its adapter or newest checkpoint; none before the first, or where its base is not found."""
        adapters = self.run.adapters
        try:
            return learned_layers(open_adapter(adapters[0])) if adapters else []
        except MosloraError as fault:
            note(str(fault))
            return []


def _results(evaluation: Evaluation | None) -> Results | None:
    if evaluation is None:
        return None
    return results_of(evaluation.settings, evaluation.tasks, evaluation.records)


Reported = tuple[list[ReportedRun], Questions, str]
"""Runs, the questions that all share, and a line on others. If all share none, each evaluation is of its own."""


def reported_runs(paths: Sequence[Path], *, evaluation: str | None = None) -> Reported:
    """What is known of the runs at ``paths``: runs, folders of runs, or experiments."""
    found = {run: arm for path in paths for run, arm in runs_at(path).items()}
    if not found:
        where = ", ".join(map(str, paths))
        raise UsageError(f"{where}: " + ("no runs here" if any(p.exists() for p in paths) else "no such run"))
    try:
        arms = load_arms(list(found), evaluation=evaluation)
    except MosloraError:  # they cannot be grouped
        arms = []
    grouped = {run.path: arm.name for arm in arms for run in arm.runs.values()}
    names = {path: Run(path).name for path in found}
    often = Counter(names.values())
    names = {path: name if often[name] == 1 else str(path) for path, name in names.items()}
    runs = [
        _reported(ReportedRun(Run(path), names[path], arm or grouped.get(path, names[path])), evaluation)
        for path, arm in found.items()
    ]
    questions, line = in_common([one for run in runs for one in (run.tuned, run.base) if one])
    if questions:
        pairs = [[one and one.only(questions) for one in (run.tuned, run.base)] for run in runs]
        runs = [replace(run, tuned=tuned, base=base) for run, (tuned, base) in zip(runs, pairs, strict=True)]
    names_of_bases = base_names([run.base.settings if run.base else None for run in runs])
    runs = [replace(run, base_name=name) for run, name in zip(runs, names_of_bases, strict=True)]
    return runs, questions, line


TELLING = ("base", "quantization", "dtype", "protocol", "format", "beams")
"""What bases are told apart by, fields of `Settings.model` and `Settings.asked`."""


def base_names(bases: Sequence[Settings | None]) -> list[str]:
    """A name for each of these evaluations of bases: "base", with the values in which they differ, such as "base (nf4)"
    and "base (llama-3, cloze)"."""
    models = _model_names([one for one in bases if one])
    described = [{**one.model, **one.asked, "base": models[base_model(one)]} if one else None for one in bases]
    differing = [field for field in TELLING if len({known[field] for known in described if known}) > 1]
    names = []
    for known in described:
        values = [known[field] for field in differing if known[field] != "None"] if known else []
        names.append(f"base ({', '.join(values)})" if values else "base")
    return names


def base_model(settings: Settings) -> str:
    """What identifies the weights of a base."""
    return str(settings.metadata.get("fingerprint") or settings.metadata.get("base"))


def _model_names(bases: Sequence[Settings]) -> dict[str, str]:
    """Name of every model, by :func:`base_model`: the last part of its path, or all of it, or with its fingerprint, if
    otherwise two had the same."""
    paths = {base_model(one): str(one.metadata.get("base")) for one in bases}
    shorts = {model: Path(path).name for model, path in paths.items()}
    marked = {model: f"{short} {model[:6]}" for model, short in shorts.items()}
    for names in (shorts, paths):
        if len(set(names.values())) == len(names):
            return names
    return marked


def _reported(run: ReportedRun, evaluation: str | None) -> ReportedRun:
    """With its evaluations."""
    try:
        folder = run.run.evaluation(evaluation)
        evaluated_steps(folder, read_head(folder).settings, of_run=True)  # refuses the scores of older weights
    except UsageError as fault:
        if evaluation:
            raise
        note(str(fault))
        return run
    return replace(run, tuned=_finished(folder), base=_finished(base_of(folder)))


def _finished(folder: Path) -> Evaluation | None:
    """The evaluation in ``folder`` if it is finished."""
    if (folder / RESULTS).is_file():
        return read_complete(folder)
    if (folder / SETTINGS).is_file():
        note(f"{folder}: interrupted, and left out; moslora eval continues it")
    return None
