"""The runs that are compared: found, grouped into arms, and paired."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from moslora.compare.answers import Answers, Outcome, read_answers
from moslora.compare.index import is_experiment, read_index
from moslora.compare.statistics import Floats
from moslora.console import note
from moslora.errors import UsageError, some
from moslora.evaluation.journal import read_head
from moslora.runs.manifest import WEIGHTS, read_manifest
from moslora.runs.run import EVALUATIONS, SETTINGS, Run, is_run

NOT_THE_ARM = ("name", "seed", "tracking", "evaluation")
"""Keys of a recipe that do not make another arm."""


@dataclass(frozen=True)
class Arm:
    """Runs whose recipes differ only in the seed.

    Attributes:
        name: of the runs, or of the folder that holds them.
        runs: seed -> answers; a model that was not trained has the seed ``None``.
        paths: seed -> where they are.
    """

    name: str
    runs: Mapping[int | None, Answers]
    paths: Mapping[int | None, Path]

    @property
    def trained(self) -> bool:
        return None not in self.runs


@dataclass(frozen=True)
class _Answered:
    """One evaluation: what the user calls it, its name, the arm that it belongs to, and its answers."""

    path: Path
    name: str
    arm: str
    answers: Answers


def load_arms(paths: Sequence[Path], *, evaluation: str | None = None) -> list[Arm]:
    """The arms in ``paths``, in their order.

    Args:
        paths: runs, folders of runs, experiments, or folders of one evaluation. A run alone is compared with its base.
        evaluation: name of the evaluation's folder in a run; ``None`` for the only one, or the recipe's.
    """
    if len(paths) == 1 and is_run(paths[0]):
        tuned = Run(paths[0]).evaluation(evaluation)
        paths = [tuned.with_name(f"{tuned.name}-base"), paths[0]]
        if not (paths[0] / SETTINGS).is_file():
            raise UsageError(
                f"{paths[0]}: not there, so there is nothing to compare this run with; give another run, or evaluate"
                " its base with --base"
            )
    runs = [run for path in paths for run in _find(path, evaluation)]
    groups: dict[str, list[_Answered]] = {}
    for run in runs:
        groups.setdefault(run.arm, []).append(run)
    if len(groups) == 1 and len(runs) == 2:  # two seeds of one recipe: how much the seed does
        groups = {str(run.path): [run] for run in runs}
    if len(groups) < 2:
        raise UsageError(
            f"{', '.join(map(str, paths))}: one arm, whose runs differ only in the seed; a comparison needs two"
        )
    return _named(list(groups.values()))


def _find(path: Path, evaluation: str | None) -> Iterator[_Answered]:
    """The evaluations at one path."""
    if is_experiment(path):
        index = read_index(path)
        if diverged := [f"{run.arm} with seed {run.seed}" for run in index.runs if run.diverged]:
            note(f"{path}: diverged, and so without answers: {', '.join(diverged)}; this compares the other runs alone")
        there = [run for run in index.runs if not run.diverged and is_run(path / run.folder)]
        if missing := len(index.runs) - len(diverged) - len(there):
            note(f"{path}: {missing} of {len(index.runs)} runs are not here, and are left out")
        for run in there:
            answered = _of_run(path / run.folder, evaluation)
            yield replace(answered, name=run.arm, arm=f"{path}: {run.arm}")
    elif (path / SETTINGS).is_file():
        yield _of_evaluation(path)
    elif is_run(path):
        yield _of_run(path, evaluation)
    elif runs := sorted(inner for inner in path.glob("*") if is_run(inner)):
        yield from (_of_run(run, evaluation) for run in runs)
    else:
        raise UsageError(f"{path}: " + ("no evaluated run here" if path.exists() else "no such file or folder"))


def _of_run(path: Path, evaluation: str | None) -> _Answered:
    return replace(_of_evaluation(Run(path).evaluation(evaluation), of_run=True), path=path)


def _of_evaluation(folder: Path, *, of_run: bool = False) -> _Answered:
    """An evaluation's folder; ``of_run``: it stands for its run."""
    run = Run(folder.parent.parent)
    if folder.parent.name != EVALUATIONS or not run.exists:
        return _Answered(folder, folder.name, str(folder), read_answers(folder))
    answers = read_answers(folder, recipe=run.recipe.model_dump(mode="json"), facts=run.facts)
    if not answers.recipe:
        return _Answered(folder, "base", str(folder), answers)
    if (steps := evaluated_steps(folder, of_run=of_run)) is not None:
        answers = replace(answers, facts={**answers.facts, "steps": steps})
    recipe = {key: value for key, value in run.recipe.model_dump(mode="json").items() if key not in NOT_THE_ARM}
    return _Answered(folder, run.path.name, json.dumps(recipe, sort_keys=True), answers)


def evaluated_steps(folder: Path, *, of_run: bool) -> int | None:
    """Steps of the adapter that was evaluated in ``folder``; ``None`` if its run keeps none.

    Raises:
        UsageError: the run has other adapters, or, where the evaluation stands for the run (``of_run``), its result is
            another one.
    """
    run, weights = Run(folder.parent.parent), read_head(folder).settings.metadata.get("adapter")
    places = run.adapters
    for place in places[:1] if of_run and run.finished else places:
        if (manifest := read_manifest(place))["sha256"][WEIGHTS] == weights:
            return int(manifest["step"])
    if places:
        raise UsageError(
            f"{folder}: the scores of other weights than {run.path} has now, as after more training; remove this"
            f" folder, then evaluate again: moslora eval {run.path}"
        )
    return None


def _named(groups: Sequence[Sequence[_Answered]]) -> list[Arm]:
    """Arms, named by what their runs' names have in common, or by the folder around them, or by path."""

    def common(group: Sequence[_Answered]) -> str:
        if len(group) == 1:
            return group[0].name
        names = {re.sub(r"[-_.=]*(seed|s)?[-_.=]*\d+$", "", run.name) for run in group}
        return names.pop() if len(names) == 1 else ""

    kinds = (common, lambda group: group[0].path.parent.name, lambda group: str(group[0].path))
    names = next(found for kind in kinds if len({*(found := [kind(group) for group in groups]), ""}) > len(groups))
    arms = []
    for name, group in zip(names, groups, strict=True):
        runs: dict[int | None, _Answered] = {}
        for run in group:
            if (twin := runs.setdefault(run.answers.seed, run)) is not run:
                raise UsageError(f"{run.path}: has the recipe and the seed of {twin.path}; leave one of them out")
        arms.append(Arm(name, {s: run.answers for s, run in runs.items()}, {s: run.path for s, run in runs.items()}))
    return arms


def pair(before: Arm, after: Arm) -> list[tuple[Answers, Answers]]:
    """Runs of the same seed, one against one whatever their seeds, and an untrained model against every seed."""
    if len(before.runs) == len(after.runs) == 1 or not (before.trained and after.trained):
        ones, others = list(before.runs.values()), list(after.runs.values())
        return [(ones[i % len(ones)], others[i % len(others)]) for i in range(max(len(ones), len(others)))]
    seeds = sorted(before.runs.keys() & after.runs.keys())  # type: ignore[type-var]
    if not seeds:
        of = [some([str(seed) for seed in arm.runs], most=8) for arm in (before, after)]
        raise UsageError(
            f"no seed in both arms ({before.name}: {of[0]}; {after.name}: {of[1]}); runs are paired by their seed"
        )
    return [(before.runs[seed], after.runs[seed]) for seed in seeds]


def values(runs: Sequence[Answers], outcome: Outcome) -> dict[str, Floats]:
    """Task -> the outcome of every question under every seed, shape ``(S, n)``."""
    attribute = "correct" if outcome == "accuracy" else outcome
    found = {task: np.array([getattr(run.tasks[task], attribute) for run in runs], float) for task in runs[0].tasks}
    for task, array in found.items():
        if not array.size:
            raise UsageError(f"{outcome}: protocol {runs[0].settings.protocol} gives none; compare the accuracy")
        if array.shape[1] < 2:
            raise UsageError(f"{task}: a comparison needs at least two questions; evaluate with a higher --limit")
    return found
