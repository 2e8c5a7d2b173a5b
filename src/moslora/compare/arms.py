"""The runs that are compared: found, grouped into arms, and paired."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from moslora.compare.answers import EXPERIMENT, Outcome, Outcomes, collect, read_index, read_outcomes
from moslora.compare.statistics import Floats
from moslora.console import note
from moslora.errors import UsageError, some
from moslora.evaluation.journal import PREDICTIONS, read_head
from moslora.evaluation.target import results_name
from moslora.recipe import load_recipe
from moslora.runs.find import RESULT, RUN, checkpoints, run_facts
from moslora.runs.manifest import MANIFEST, RECIPE, WEIGHTS, read_manifest

NOT_THE_ARM = ("name", "seed", "tracking", "evaluation")
"""Keys of a recipe that do not make another arm."""


@dataclass(frozen=True)
class Arm:
    """Runs whose recipes differ only in the seed.

    Attributes:
        name: of the runs, or of the folder that holds them.
        runs: seed -> outcomes; a model that was not trained has the seed ``None``.
        paths: seed -> where they are.
    """

    name: str
    runs: Mapping[int | None, Outcomes]
    paths: Mapping[int | None, Path]

    @property
    def trained(self) -> bool:
        return None not in self.runs


@dataclass(frozen=True)
class _Run:
    path: Path
    name: str
    group: str
    outcomes: Outcomes


def load_arms(paths: Sequence[Path], *, evaluation: str | None = None) -> list[Arm]:
    """The arms in ``paths``, in their order.

    Args:
        paths: runs, folders of runs, experiments, folders of one evaluation, or files of `Outcomes`. A run alone is
            compared with its base.
        evaluation: name of the evaluation's folder in a run's ``eval/``; ``None`` for the only one, or the recipe's.
    """
    if len(paths) == 1 and _is_run(paths[0]):
        tuned = evaluation_folder(paths[0], evaluation)
        paths = [tuned.with_name(f"{tuned.name}-base"), paths[0]]
        if not (paths[0] / PREDICTIONS).is_file():
            raise UsageError(
                f"{paths[0]}: not there, so there is nothing to compare this run with; give another run, or evaluate"
                " its base with --base"
            )
    runs = [run for path in paths for run in _find(path, evaluation)]
    groups: dict[str, list[_Run]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    if len(groups) == 1 and len(runs) == 2:  # two seeds of one recipe: how much the seed does
        groups = {str(run.path): [run] for run in runs}
    if len(groups) < 2:
        raise UsageError(
            f"{', '.join(map(str, paths))}: one arm, whose runs differ only in the seed; a comparison needs two"
        )
    return _named(list(groups.values()))


def _find(path: Path, evaluation: str | None) -> Iterator[_Run]:
    """The runs at one path."""
    if (path / EXPERIMENT).is_file():
        index = read_index(path)
        if diverged := [f"{run.arm} with seed {run.seed}" for run in index.runs if run.diverged]:
            note(f"{path}: diverged, and so without answers: {', '.join(diverged)}; this compares the other runs alone")
        there = [run for run in index.runs if (path / run.results).is_file()]
        if missing := len(index.runs) - len(diverged) - len(there):
            note(f"{path}: {missing} of {len(index.runs)} runs have no results yet, and are left out")
        for run in there:
            yield _Run(path / run.results, run.arm, f"{path}: {run.arm}", read_outcomes(path / run.results))
    elif path.is_file():
        yield _run(path, path.stem, read_outcomes(path))
    elif (path / PREDICTIONS).is_file():
        yield _of_evaluation(path)
    elif _is_run(path):
        yield _of_evaluation(evaluation_folder(path, evaluation), path=path)
    elif runs := sorted(inner for inner in path.glob("*") if _is_run(inner)):
        yield from (_of_evaluation(evaluation_folder(run, evaluation), path=run) for run in runs)
    else:
        raise UsageError(f"{path}: " + ("no evaluated run here" if path.exists() else "no such file or folder"))


def _is_run(path: Path) -> bool:
    return (path / RUN).is_file() or (path / "eval").is_dir()


def _of_evaluation(folder: Path, *, path: Path | None = None) -> _Run:
    """The run of an evaluation's folder; ``path`` is what the user calls it."""
    run = folder.parent.parent
    if folder.parent.name != "eval" or not (run / RECIPE).is_file():
        return _run(folder, folder.name, collect(folder, recipe=None, facts={}))
    recipe = load_recipe(run / RECIPE, written=True).model_dump(mode="json")
    outcomes = collect(folder, recipe=recipe, facts=run_facts(run))
    if outcomes.recipe and (steps := _steps(folder, run, of_run=path is not None)):
        outcomes = replace(outcomes, facts={**outcomes.facts, "steps": steps})
    return _run(path or folder, run.name if outcomes.recipe else "base", outcomes)


def _steps(folder: Path, run: Path, *, of_run: bool) -> int | None:
    """Steps of the adapter of ``run`` that was evaluated in ``folder``; ``None`` for a base, or without any adapter.

    It may be a checkpoint; ``of_run``: only where the run has no result. Otherwise the scores are refused.
    """
    weights = read_head(folder).settings.metadata.get("adapter")
    places = [place for place in (run / RESULT, *checkpoints(run)) if (place / MANIFEST).is_file()]
    for place in places[:1] if of_run and (run / RESULT) in places else places:
        if (manifest := read_manifest(place))["sha256"][WEIGHTS] == weights:
            return manifest.get("step")
    if weights and places:
        raise UsageError(
            f"{folder}: the scores of other weights than {run} has now, as after more training; remove this folder,"
            f" then evaluate again: moslora eval {run}"
        )
    return None


def _run(path: Path, name: str, outcomes: Outcomes) -> _Run:
    recipe = {key: value for key, value in (outcomes.recipe or {}).items() if key not in NOT_THE_ARM}
    return _Run(path, name, json.dumps(recipe, sort_keys=True) if recipe else str(path), outcomes)


def evaluation_folder(run: Path, name: str | None) -> Path:
    """The folder of a run's evaluation: the one called ``name``, or the only one, or the one that its recipe names."""
    found = sorted(path.parent for path in run.glob(f"eval/*/{PREDICTIONS}"))
    found = [path for path in found if not re.search(r"-base$|-step-\d+$", path.name)]
    if not name and len(found) > 1 and (run / RECIPE).is_file():
        recipe = load_recipe(run / RECIPE, written=True)
        own = results_name(recipe.evaluation.protocol, recipe.data.format, recipe.model)
        name = own if run / "eval" / own in found else None
    if name:
        found = [run / "eval" / name]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UsageError(f"{run}: evaluated in several ways; choose one with --evaluation, among {names}")
    if not found or not (found[0] / PREDICTIONS).is_file():
        raise UsageError(f"{run}: not evaluated" + (f" as {name}" if name else "") + f"; moslora eval {run} does it")
    _steps(found[0], run, of_run=True)  # refuses scores of older weights
    return found[0]


def _named(groups: Sequence[Sequence[_Run]]) -> list[Arm]:
    """Arms, named by what their runs' names have in common, or by the folder around them, or by path."""

    def common(group: Sequence[_Run]) -> str:
        if len(group) == 1:
            return group[0].name
        names = {re.sub(r"[-_.=]*(seed|s)?[-_.=]*\d+$", "", run.name) for run in group}
        return names.pop() if len(names) == 1 else ""

    kinds = (common, lambda group: group[0].path.parent.name, lambda group: str(group[0].path))
    names = next(found for kind in kinds if len({*(found := [kind(group) for group in groups]), ""}) > len(groups))
    arms = []
    for name, group in zip(names, groups, strict=True):
        runs: dict[int | None, _Run] = {}
        for run in group:
            if (twin := runs.setdefault(run.outcomes.seed, run)) is not run:
                raise UsageError(f"{run.path}: has the recipe and the seed of {twin.path}; leave one of them out")
        arms.append(Arm(name, {s: run.outcomes for s, run in runs.items()}, {s: run.path for s, run in runs.items()}))
    return arms


def pair(before: Arm, after: Arm) -> list[tuple[Outcomes, Outcomes]]:
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


def values(runs: Sequence[Outcomes], outcome: Outcome) -> dict[str, Floats]:
    """Task -> the outcome of every question under every seed, shape ``(S, n)``."""
    attribute = "correct" if outcome == "accuracy" else outcome
    found = {task: np.array([getattr(run.tasks[task], attribute) for run in runs], float) for task in runs[0].tasks}
    for task, array in found.items():
        if not array.size:
            raise UsageError(f"{outcome}: protocol {runs[0].settings.protocol} gives none; compare the accuracy")
        if array.shape[1] < 2:
            raise UsageError(f"{task}: a comparison needs at least two questions; evaluate with a higher --limit")
    return found
