"""Arms: groups of runs that differ only in the seed, their names, and how their runs are paired.

What is computed from the pairs is in `moslora.compare.contrast`.
"""

import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from moslora.compare.compared_run import ComparedRun
from moslora.compare.distribution import Floats
from moslora.compare.find import find_runs
from moslora.compare.statistics import Codes
from moslora.errors import UsageError, some
from moslora.runs.evaluation import Evaluation
from moslora.runs.outcomes import Outcome
from moslora.runs.run import is_run

SEED_AT_END = re.compile(r"[-_.=]*(seed|s)?[-_.=]*\d+$")
"""Seed at the end of a run's name, with its separators."""


@dataclass(frozen=True)
class Arm:
    """Runs whose training steps differ only in the seed (`moslora.compare.find.arm_key`).

    Attributes:
        name: common name of the runs, or name of the folder that holds them.
        runs: seed -> run; a model that was not trained has the seed ``None``.
    """

    name: str
    runs: dict[int | None, ComparedRun]

    @property
    def trained(self) -> bool:
        """Whether the runs were trained."""
        return None not in self.runs

    def each(self, change: Callable[[ComparedRun], ComparedRun]) -> "Arm":
        """Return the arm with ``change`` applied to every run."""
        return replace(self, runs={seed: change(run) for seed, run in self.runs.items()})


def all_runs(arms: Sequence[Arm]) -> list[ComparedRun]:
    """Return the runs of all arms, arm by arm."""
    return [run for arm in arms for run in arm.runs.values()]


def load_arms(paths: Sequence[Path], *, evaluation: str | None = None, cluster: str | None = None) -> list[Arm]:
    """Return the arms at ``paths``, in their order.

    A single run is joined by its base. Two runs are an arm each, also if they differ only in the seed.

    Args:
        paths: runs, folders of runs, experiments, or folders of one evaluation; or logs of other programs.
        evaluation: name of the evaluation's folder in a run; ``None`` for the only one, or, of several, for the
            one that the recipe describes.
        cluster: column of logs, or path into a row, that groups the questions.
    """
    runs = find_runs(paths, evaluation=evaluation, cluster=cluster)
    if len(paths) == 1 and is_run(paths[0]):
        base = runs[0].evaluation.base
        if base is None:
            raise UsageError(
                f"{paths[0]}: its base has no answers; name another run, or evaluate the base as the run was, with"
                f" --base: moslora eval {shlex.quote(str(paths[0]))} --base"
            )
        runs = [ComparedRun.of(base), *runs]
    return arms_of(runs)


def arms_of(runs: Sequence[ComparedRun]) -> list[Arm]:
    """Return the arms of these runs, named by what the runs' names share, else by the folder around them, else by path.

    Raises:
        UsageError: two runs have the same recipe and seed, or there is only one arm.
    """
    groups: dict[str, dict[int | None, ComparedRun]] = {}
    for run in runs:
        group = groups.setdefault(str(run.path) if len(runs) == 2 else run.arm, {})
        same_seed = group.setdefault(run.seed, run)
        if same_seed is not run:
            raise UsageError(f"{run.path}: has the same recipe and seed as {same_seed.path}; leave one of them out")
    if len(groups) < 2:
        paths = some(run.path for run in runs)
        raise UsageError(f"{paths}: a comparison needs two arms; runs that differ only in the seed are one arm")
    first_paths = [next(iter(group.values())).path for group in groups.values()]
    candidates = (
        [_common_name(group.values()) for group in groups.values()],
        [path.parent.name for path in first_paths],
        [str(path) for path in first_paths],
    )
    names = next(each for each in candidates if all(each) and len(set(each)) == len(groups))
    return [Arm(name, group) for name, group in zip(names, groups.values(), strict=True)]


def _common_name(group: Iterable[ComparedRun]) -> str:
    """Return the name that all runs share, if need be without a seed at its end; empty if there is none."""
    names = {run.name for run in group}
    if len(names) > 1:  # a single name is that of an experiment's arm, which may end in a number
        names = {SEED_AT_END.sub("", name) for name in names}
    return names.pop() if len(names) == 1 else ""


SEEDS = "seeds"
"""Value of ``--allow`` for arms whose seeds are independent of each other."""


def pairs_by_seed(before: Arm, after: Arm) -> bool:
    """Whether runs of these arms are paired by seed: both are trained, and at least one has several runs."""
    return before.trained and after.trained and max(len(before.runs), len(after.runs)) > 1


def pairs(before: Arm, after: Arm) -> list[tuple[ComparedRun, ComparedRun]]:
    """Return the pairs of runs to compare: those of the same seed, an untrained model with every run, or two lone runs.

    Empty if no run has a partner, for example if the runs of the other arm diverged.
    """
    if pairs_by_seed(before, after):
        seeds = sorted(before.runs.keys() & after.runs.keys())  # type: ignore[type-var]
        return [(before.runs[seed], after.runs[seed]) for seed in seeds]
    return list(product(before.runs.values(), after.runs.values()))


def unpaired_runs(before: Arm, after: Arm) -> list[str]:
    """Return the runs without a partner of the same seed, named by arm and seed; empty if not paired by seed."""
    if not pairs_by_seed(before, after):
        return []
    both = before.runs.keys() & after.runs.keys()
    return [f"{arm.name} with seed {seed}" for arm in (before, after) for seed in arm.runs if seed not in both]


def cluster_codes(runs: Sequence[Evaluation]) -> dict[str, Codes]:
    """Return, by task, the index of each question's cluster, shape ``(n,)``; without tasks that have no clusters.

    The first run that records clusters decides.

    Args:
        runs: answers to the same questions.

    Raises:
        UsageError: all questions of a task are one cluster.
    """
    codes_by_task = {}
    for task in runs[0].tasks:
        recorded = [run.tasks[task].clusters for run in runs if run.tasks[task].clusters]
        if not recorded:
            continue
        names, codes = np.unique(recorded[0], return_inverse=True)
        if len(names) == 1:
            raise UsageError(
                f"{task}: all of these questions share a text, and are one cluster; evaluate with a higher --limit"
            )
        if len(names) < len(codes):
            codes_by_task[task] = codes
    return codes_by_task


HELD_OUT = "held-out rows"
"""Name in place of a task's for an outcome of whole runs."""


def outcome_values(runs: Sequence[ComparedRun], outcome: Outcome) -> dict[str, Floats]:
    """Return, by task, the outcome of every question in every run, shape ``(S, n)``; ``(S, 1)`` for an outcome of runs.

    Raises:
        UsageError: a number is missing or not finite, or a task has a single question.
    """
    arrays = {HELD_OUT: np.array([[run.validation_loss] for run in runs], float)}
    if not outcome.of_runs:
        arrays = {task: np.array([run.tasks[task].outcomes[outcome.name] for run in runs]) for task in runs[0].tasks}
    for task, array in arrays.items():
        for run, numbers in zip(runs, array, strict=True):
            if not np.isfinite(numbers).all():
                raise UsageError(
                    f"{run.path}: {outcome.name} of {task} is missing or not finite; choose another --outcome"
                )
        if array.shape[1] < 2 and not outcome.of_runs:
            raise UsageError(f"{task}: a comparison needs at least two questions; evaluate with a higher --limit")
    return arrays
