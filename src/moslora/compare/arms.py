"""The runs that are compared: found, grouped into arms, and paired."""

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moslora.compare.index import ExperimentIndex, read_index
from moslora.compare.logs import log_files, read_logs
from moslora.compare.runs import ComparedRun, read_complete
from moslora.compare.statistics import Floats
from moslora.console import note
from moslora.errors import UsageError, some
from moslora.recipe import Changes, Recipe
from moslora.recipe.changes import changes_at
from moslora.recipe.recipe import flat
from moslora.runs.manifest import RECIPE, WEIGHTS, read_manifest
from moslora.runs.run import CHECKPOINTS, SETTINGS, Run, base_of, is_run
from moslora.runs.settings import Settings
from moslora.tasks import BUILT_IN

OF_AN_ARM = (Changes.TRAINED, Changes.ROWS)
"""What the values of a recipe change that make another arm. The base is told by its fingerprint."""

OF_THE_ROWS = (Changes.PLACE, Changes.READING)
"""Where rows are and how they are read makes another arm only if the rows are others, which a run's card says with a
hash of all of them."""


@dataclass(frozen=True)
class Arm:
    """Runs of the same steps but for the seed (:data:`OF_AN_ARM`).

    Attributes:
        name: of the runs, or of the folder that holds them.
        runs: seed -> answers; a model that was not trained has the seed ``None``.
    """

    name: str
    runs: dict[int | None, ComparedRun]

    @property
    def trained(self) -> bool:
        return None not in self.runs

    def each(self, change: Callable[[ComparedRun], ComparedRun]) -> "Arm":
        return Arm(self.name, {seed: change(run) for seed, run in self.runs.items()})


def all_runs(arms: Sequence[Arm]) -> list[ComparedRun]:
    """The runs of all arms, arm by arm."""
    found: list[ComparedRun] = []
    for arm in arms:
        found += arm.runs.values()
    return found


def load_arms(paths: Sequence[Path], *, evaluation: str | None = None) -> list[Arm]:
    """The arms in ``paths``, in their order.

    Args:
        paths: runs, folders of runs, experiments, or folders of one evaluation; or logs of other programs. A run alone
            is compared with its base.
        evaluation: name of the evaluation's folder in a run; ``None`` for the only one, or the recipe's.
    """
    if len(paths) == 1 and is_run(paths[0]):
        tuned = Run(paths[0]).evaluation(evaluation)
        paths = [base_of(tuned), paths[0]]
        if not (paths[0] / SETTINGS).is_file():
            asked = _answered(tuned)
            raise UsageError(
                f"{paths[0]}: not there, so there is nothing to compare this run with; give another run, or evaluate"
                f" its base: {eval_command(replace(asked, path=paths[0], recipe=None), asked)}"
            )
    of_others = any(not ((path / SETTINGS).is_file() or runs_at(path)) and log_files(path) for path in paths)
    found = [*(read_logs(paths) if of_others else (one for path in paths for one in _find(path, evaluation)))]
    found = _apart_by_rows(found)
    groups = {arm: [one for one in found if one.arm == arm] for arm in dict.fromkeys(one.arm for one in found)}
    if len(groups) == 1 and len(found) == 2:  # two seeds of one recipe: how much the seed does
        groups = {str(one.path): [one] for one in found}
    if len(groups) < 2:
        why = "one arm, whose runs differ only in the seed" if groups else "no run with answers"
        raise UsageError(f"{', '.join(map(str, paths))}: {why}; a comparison needs two arms")
    return _named(list(groups.values()))


def runs_at(path: Path, index: ExperimentIndex | None = None) -> dict[Path, str | None]:
    """The run at ``path``, those in this folder, or an experiment's with the arms that its index names."""
    if index := read_index(path) if index is None else index:
        return {path / run.folder: run.arm for run in index.runs if is_run(path / run.folder)}
    return dict.fromkeys([path] if is_run(path) else sorted(filter(is_run, path.glob("*"))))


def _find(path: Path, evaluation: str | None) -> Iterator[ComparedRun]:
    """The evaluations at one path."""
    if (path / SETTINGS).is_file():
        yield _answered(path)
        return
    index = read_index(path)
    found, planned = runs_at(path, index), index.runs if index else ()
    if diverged := {path / run.folder: f"{run.arm} with seed {run.seed}" for run in planned if run.diverged}:
        names = ", ".join(diverged.values())
        note(f"{path}: diverged, and so without answers: {names}; this compares the other runs alone")
    if missing := sum(path / run.folder not in {**found, **diverged} for run in planned):
        note(f"{path}: {missing} of {len(planned)} runs are not here, and are left out")
    if not found:
        raise UsageError(f"{path}: " + ("no evaluated run here" if path.exists() else "no such file or folder"))
    for place, arm in found.items():
        if place not in diverged:
            one = _answered(Run(place).evaluation(evaluation), run=place)
            if arm and one.recipe and not evaluation:  # the experiment's own questions
                asked = one.recipe["evaluation"]
                one = one.restricted_to(asked["tasks"] or one.recipe["data"]["tasks"], asked["limit"])
            yield replace(one, name=arm, arm=f"{path}: {arm}") if arm else one


def _answered(folder: Path, *, run: Path | None = None) -> ComparedRun:
    """An evaluation's folder, which stands for a ``run`` if that is given."""
    evaluation = read_complete(folder).in_order
    found = ComparedRun(evaluation, path=run or folder, name=folder.name, arm=str(folder))
    made = evaluation.run
    if made is None:
        return found
    if evaluation.of_base:
        return replace(found, name="base")
    recipe = made.recipe
    facts = made.facts
    steps = evaluated_steps(folder, evaluation.settings, of_run=run is not None)
    if steps is not None:
        facts["steps"] = steps
    arm = _arm_of(recipe, facts, base=evaluation.settings.metadata.get("fingerprint"))
    values = recipe.model_dump(mode="json")
    return replace(found, recipe=values, facts=facts, name=made.path.name, arm=arm, seed=recipe.seed)


def _arm_of(recipe: Recipe, facts: Mapping[str, Any], *, base: str | None) -> str:
    """What makes the arm of a run: every value of its recipe that changes a step, but for the seed; its ``base``, a
    fingerprint if it is known; and with a gate's balance, which each pass takes over its own rows, what cut the passes.
    """
    values = recipe.values(*OF_AN_ARM)
    values["base"] = base or [recipe.model.name, recipe.model.revision]
    if recipe.adapter.is_balanced:
        values["passes"] = [facts.get("processes"), facts.get("micro_batch_tokens")]
    return json.dumps(values, sort_keys=True)


def _apart_by_rows(found: Sequence[ComparedRun]) -> list[ComparedRun]:
    """``found``, with the runs of an arm apart if their rows are from other sources. Where that was not recorded, of
    earlier versions, they are apart by the places of their rows if under one seed, which chooses among them,
    other rows were trained."""
    sources: dict[str, set[str]] = {}
    trained: dict[tuple[str, int | None], set[str | None]] = {}
    for one in found:
        trained.setdefault((one.arm, one.seed), set()).add(one.facts.get("data", {}).get("sha256"))
        if one.source_hash:
            sources.setdefault(one.arm, set()).add(one.source_hash)
    by_source = {arm for arm, hashes in sources.items() if len(hashes) > 1}
    by_place = {arm for (arm, _), hashes in trained.items() if len(hashes) > 1} - by_source
    apart = []
    for one in found:
        if one.arm in by_source:
            one = replace(one, arm=f"{one.arm} {one.source_hash}")
        elif one.arm in by_place:
            one = replace(one, arm=one.arm + _places_of_rows(one))
        apart.append(one)
    return apart


def _places_of_rows(one: ComparedRun) -> str:
    values = flat(one.recipe or {})
    places = {key: value for key, value in values.items() if changes_at(Recipe, key) in OF_THE_ROWS}
    return json.dumps(places, sort_keys=True)


def evaluated_steps(folder: Path, settings: Settings, *, of_run: bool) -> int | None:
    """Steps of the adapter that was evaluated in ``folder``; ``None`` if its run keeps none.

    Raises:
        UsageError: the run has other adapters, or, where the evaluation stands for the run (``of_run``), its result is
            another one.
    """
    weights = settings.metadata.get("adapter")
    run = Run(folder.parent.parent)
    places = run.adapters
    for place in places[:1] if of_run and run.finished else places:
        if (manifest := read_manifest(place))["sha256"][WEIGHTS] == weights:
            return manifest.get("step")  # none of an imported one
    if not of_run and (checkpoint := re.search(r"-step-(\d+)$", folder.name)):
        return int(checkpoint[1])  # which was deleted since
    if places:
        raise UsageError(
            f"{folder}: the scores of other weights than {run.path} has now, as after more training; remove this"
            f" folder, then evaluate again: moslora eval {shlex.quote(str(run.path))}"
        )
    return None


def eval_command(run: ComparedRun, asked: ComparedRun) -> str:
    """The command that asks the model of ``run`` the questions of ``asked``, in the way in which it was asked."""
    mine, other = (Run(one.path if is_run(one.path) else one.path.parent.parent) for one in (run, asked))
    target, known = shlex.quote(str(run.settings.metadata.get("base"))), tuple(BUILT_IN)
    if mine.exists:
        checkpoint, known = re.search(r"-(step-\d+)$", run.path.name), (*known, *mine.recipe.tasks)
        target = shlex.quote(str(mine.path / CHECKPOINTS / checkpoint[1] if checkpoint else mine.path))
        target += "" if run.recipe else " --base"
    # A task that only the other run knows is declared by its recipe.
    tasks = dict.fromkeys(task if task in known else shlex.quote(str(other.path / RECIPE)) for task in asked.tasks)
    # Another limit in tokens would be refused in the same folder.
    asked_by = {key: getattr(run.settings, key) for key in ("protocol", "format", "dtype", "beams", "max_length")}
    asked_by["source"] = run.settings.metadata.get("source")
    options = {f"--{key.replace('_', '-')}": value for key, value in asked_by.items() if value is not None}
    how = " ".join(f"{option} {shlex.quote(str(value))}" for option, value in options.items())
    limit = max(len(answers.ids) for answers in asked.tasks.values())
    return f"moslora eval {target} {how} --tasks {','.join(tasks)} --limit {limit}"


def _named(groups: Sequence[Sequence[ComparedRun]]) -> list[Arm]:
    """Arms, named by what their runs' names have in common, or by the folder around them, or by path."""

    def common(group: Sequence[ComparedRun]) -> str:
        if len({one.name for one in group}) == 1:  # as an experiment's arms, whose names may end in a number
            return group[0].name
        names = {re.sub(r"[-_.=]*(seed|s)?[-_.=]*\d+$", "", one.name) for one in group}
        return names.pop() if len(names) == 1 else ""

    paths = [group[0].path for group in groups]
    kinds = ([common(group) for group in groups], [path.parent.name for path in paths], [str(path) for path in paths])
    names = next(found for found in kinds if len({*found, ""}) > len(groups))
    arms = [Arm(name, {}) for name in names]
    for arm, group in zip(arms, groups, strict=True):
        for answers in group:
            if (twin := arm.runs.setdefault(answers.seed, answers)) is not answers:
                raise UsageError(f"{answers.path}: has the recipe and the seed of {twin.path}; leave one of them out")
    return arms


def pair(before: Arm, after: Arm) -> list[tuple[ComparedRun, ComparedRun]]:
    """Runs of the same seed, one against one whatever their seeds, and an untrained model against every seed."""
    if len(before.runs) == len(after.runs) == 1 or not (before.trained and after.trained):
        ones, others = list(before.runs.values()), list(after.runs.values())
        return [(ones[i % len(ones)], others[i % len(others)]) for i in range(max(len(ones), len(others)))]
    seeds = sorted(before.runs.keys() & after.runs.keys())  # type: ignore[type-var]
    if not seeds:
        both = "; ".join(f"{arm.name}: {some([*map(str, arm.runs)], most=8)}" for arm in (before, after))
        raise UsageError(f"no seed in both arms ({both}); runs are paired by their seed")
    return [(before.runs[seed], after.runs[seed]) for seed in seeds]


def values(runs: Sequence[ComparedRun], outcome: str) -> dict[str, Floats]:
    """Task -> the outcome of every question under every seed, shape ``(S, n)``."""
    found = {task: np.array([run.tasks[task].outcomes[outcome] for run in runs], float) for task in runs[0].tasks}
    for task, array in found.items():
        if not np.isfinite(array).all():
            raise UsageError(f"{task}: {outcome} of some questions is no finite number; compare another metric")
        if array.shape[1] < 2:
            raise UsageError(f"{task}: a comparison needs at least two questions; evaluate with a higher --limit")
    return found
