"""Arms: runs that differ only in the seed, named, and paired by their seeds."""

import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from moslora.compare.compared_run import ComparedRun
from moslora.compare.distribution import Floats
from moslora.compare.find import find
from moslora.compare.statistics import Codes
from moslora.errors import UsageError, some
from moslora.runs.evaluation import Evaluation
from moslora.runs.outcomes import Outcome
from moslora.runs.run import Run, is_run

SEED_AT_END = re.compile(r"[-_.=]*(seed|s)?[-_.=]*\d+$")
"""At the end of the name of a run."""


@dataclass(frozen=True)
class Arm:
    """Runs of the same steps but for the seed (`moslora.compare.find.arm_key`).

    Attributes:
        name: of the runs, or of the folder that holds them.
        runs: seed -> run; a model that was not trained has the seed ``None``.
    """

    name: str
    runs: dict[int | None, ComparedRun]

    @property
    def trained(self) -> bool:
        return None not in self.runs

    def each(self, change: Callable[[ComparedRun], ComparedRun]) -> "Arm":
        return replace(self, runs={seed: change(run) for seed, run in self.runs.items()})


def all_runs(arms: Sequence[Arm]) -> list[ComparedRun]:
    """The runs of all arms, arm by arm."""
    return [run for arm in arms for run in arm.runs.values()]


def load_arms(paths: Sequence[Path], *, evaluation: str | None = None, cluster: str | None = None) -> list[Arm]:
    """The arms in ``paths``, in their order. A run alone is compared with its base, and two seeds of one recipe with
    each other.

    Args:
        paths: runs, folders of runs, experiments, or folders of one evaluation; or logs of other programs.
        evaluation: name of the evaluation's folder in a run; ``None`` for the only one, or the recipe's.
        cluster: what groups the questions of logs: a column, or a path into a row.
    """
    runs = find(paths, evaluation=evaluation, cluster=cluster)
    if len(paths) == 1 and is_run(paths[0]):
        base = runs[0].evaluation.base
        if base is None:
            command = shlex.join(_evaluation_of_base(paths[0], runs[0].evaluation))
            raise UsageError(f"{paths[0]}: its base was not asked; give another run, or ask it likewise: {command}")
        runs = [ComparedRun.of(base), *runs]
    return arms_of(runs)


def _evaluation_of_base(path: Path, evaluation: Evaluation) -> list[str]:
    """The command that asks the base of the run at ``path`` what ``evaluation`` asked the run."""
    words = ["moslora", "eval", str(path), "--base"]
    if evaluation.conditions is not None:
        words += ["--protocol", evaluation.conditions.protocol, "--format", evaluation.conditions.format]
    if {*evaluation.tasks} != {task.name for task in Run(path).recipe.questions.tasks}:
        words += ["--tasks", ",".join(evaluation.tasks)]
    return words


def arms_of(runs: Sequence[ComparedRun]) -> list[Arm]:
    """The arms of these runs, named by what their names have in common, or by the folder around them, or by path."""
    groups: dict[str, dict[int | None, ComparedRun]] = {}
    for run in runs:
        group = groups.setdefault(str(run.path) if len(runs) == 2 else run.arm, {})
        twin = group.setdefault(run.seed, run)
        if twin is not run:
            raise UsageError(f"{run.path}: has the same recipe and seed as {twin.path}; leave one of them out")
    if len(groups) < 2:
        where = some(run.path for run in runs)
        raise UsageError(f"{where}: a comparison needs two arms; runs that differ only in the seed are one arm")
    paths = [next(iter(group.values())).path for group in groups.values()]
    kinds = (
        [_common_name(group.values()) for group in groups.values()],
        [path.parent.name for path in paths],
        [str(path) for path in paths],
    )
    names = next(kind for kind in kinds if all(kind) and len(set(kind)) == len(groups))
    return [Arm(name, group) for name, group in zip(names, groups.values(), strict=True)]


def _common_name(group: Iterable[ComparedRun]) -> str:
    """The name of all runs, or what is left without a seed at its end; empty if that differs."""
    names = {run.name for run in group}
    if len(names) > 1:  # one name is an experiment's arm, which may end in a number
        names = {SEED_AT_END.sub("", name) for name in names}
    return names.pop() if len(names) == 1 else ""


SEEDS = "seeds"
"""What ``--allow`` names where the seeds of the arms have nothing to do with each other."""


def pairs_by_seed(before: Arm, after: Arm) -> bool:
    """Whether only their seeds can pair the runs of these arms: not one against one, nor those of an untrained
    model."""
    return before.trained and after.trained and max(len(before.runs), len(after.runs)) > 1


def pairs(before: Arm, after: Arm) -> list[tuple[ComparedRun, ComparedRun]]:
    """Runs of the same seed, one against one whatever their seeds, and an untrained model against every seed. There may
    be none, also where those of either arm diverged."""
    if pairs_by_seed(before, after):
        seeds = sorted(before.runs.keys() & after.runs.keys())  # type: ignore[type-var]
        return [(before.runs[seed], after.runs[seed]) for seed in seeds]
    return list(product(before.runs.values(), after.runs.values()))


def unpaired_runs(before: Arm, after: Arm) -> list[str]:
    """The runs that `pairs` leaves out, named by arm and seed."""
    if not pairs_by_seed(before, after):
        return []
    both = before.runs.keys() & after.runs.keys()
    return [f"{arm.name} with seed {seed}" for arm in (before, after) for seed in arm.runs if seed not in both]


def cluster_codes(runs: Sequence[Evaluation]) -> dict[str, Codes]:
    """Task -> the number of each question's cluster, shape ``(n,)``, as the first run says that knows it; without the
    tasks whose questions are each alone. ``runs`` have answered the same questions."""
    codes_by_task = {}
    for task in runs[0].tasks:
        known = [run.tasks[task].clusters for run in runs if run.tasks[task].clusters]
        if not known:
            continue
        names, codes = np.unique(known[0], return_inverse=True)
        if len(names) == 1:
            raise UsageError(
                f"{task}: all of these questions share a text, and are one cluster; evaluate with a higher --limit"
            )
        if len(names) < len(codes):
            codes_by_task[task] = codes
    return codes_by_task


HELD_OUT = "held-out rows"
"""What stands for a task where an outcome of runs is compared."""


def values(runs: Sequence[ComparedRun], outcome: Outcome) -> dict[str, Floats]:
    """Task -> the outcome of every question under every seed, shape ``(S, n)``; of an outcome of runs shape
    ``(S, 1)``."""
    arrays = {HELD_OUT: np.array([[run.validation_loss] for run in runs], float)}
    if not outcome.of_runs:
        arrays = {task: np.array([run.tasks[task].outcomes[outcome.name] for run in runs]) for task in runs[0].tasks}
    for task, array in arrays.items():
        if not np.isfinite(array).all():
            raise UsageError(f"{task}: {outcome.name} is not finite for some questions; compare another metric")
        if array.shape[1] < 2 and not outcome.of_runs:
            raise UsageError(f"{task}: a comparison needs at least two questions; evaluate with a higher --limit")
    return arrays
