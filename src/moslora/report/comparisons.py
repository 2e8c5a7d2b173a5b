"""The comparisons on the page: the arms against the first, and each base's arms against it.

Arms are compared task by task, over the questions that both answered. So those with other tasks are compared apart;
all contrasts with one arm are a family.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from moslora.compare.arms import Arm, all_runs
from moslora.compare.comparable import training_differences
from moslora.compare.compared_run import ComparedRun, evaluations_of
from moslora.compare.comparison import Comparison, compare_arms, compare_planned
from moslora.compare.conclusion import conclusions, remarks
from moslora.compare.contrast import Contrast
from moslora.compare.display import tables
from moslora.compare.index import read_index
from moslora.errors import MosloraError, first_line, some
from moslora.report.runs import ReportedRun
from moslora.runs.evaluation import questions_in_common


@dataclass(frozen=True)
class ShownComparison:
    """A comparison, or the reason why there is none."""

    title: str
    verdicts: Sequence[str]  # the conclusions, or the reason
    contrasts: Sequence[Contrast] = ()  # as they are drawn
    tables: Sequence[list[list[str]]] = ()
    lines: Sequence[str] = ()  # below the tables


def against_each_other(runs: Sequence[ReportedRun], paths: Sequence[Path]) -> list[ShownComparison]:
    """The arms against the first, or as the experiment at the only one of ``paths`` has named it."""
    arms = _arms([(run.arm, run.compared) for run in runs])
    if len(arms) < 2:
        return []
    title = "Against each other"
    index = read_index(paths[0]) if len(paths) == 1 else None
    if index is not None:
        return [_shown(title, arms, partial(compare_planned, index=index, outcome=index.outcome))]
    return _against_first(title, arms)


def against_bases(runs: Sequence[ReportedRun]) -> list[ShownComparison]:
    """The arms of each base against it."""
    found = []
    with_base = [run for run in runs if run.base]
    for name in dict.fromkeys(run.base_name for run in with_base):
        its_runs = [run for run in with_base if run.base_name == name]
        bases = [ComparedRun.of(run.base) for run in its_runs[:1] if run.base]
        arms = _arms([*((name, base) for base in bases), *((run.arm, run.tuned) for run in its_runs)])
        found += _against_first(f"Against the {name}", arms)
    return found


def _arms(runs: Sequence[tuple[str, ComparedRun | None]]) -> list[Arm]:
    """The arms of runs with the names of their arms; without those that have no answers."""
    found: dict[str, dict[int | None, ComparedRun]] = {}
    for name, run in runs:
        if run is not None:
            found.setdefault(name, {})[run.seed] = run
    return [Arm(name, by_seed) for name, by_seed in found.items()]


def _against_first(title: str, arms: Sequence[Arm]) -> list[ShownComparison]:
    """The comparisons of the arms with the first, one for all that have the same tasks in common with it."""
    first, *others = arms
    groups: dict[str, list[Arm]] = {}
    for other in others:
        shared, _ = questions_in_common(evaluations_of(all_runs([first, other])))
        groups.setdefault(", ".join(shared), []).append(other)
    found = []
    for tasks, group in groups.items():
        names = [arm.name for arm in group]
        apart = f": {', '.join(names)}, on {tasks or 'nothing'}" if len(groups) > 1 else ""
        compare = partial(compare_arms, contrasts=[(first.name, name) for name in names])
        found.append(_shown(title + apart, [first, *group], compare, count=len(others)))
    return found


def _shown(
    title: str, arms: Sequence[Arm], compare: Callable[..., Comparison], *, count: int | None = None
) -> ShownComparison:
    """What ``compare`` finds, in a family of ``count``, or why it finds nothing. Base, rows and steps may differ, which
    a line says: what is compared are these models."""
    differing = list(training_differences(all_runs(arms)))
    try:
        found = compare(arms, allowed=differing).within(None)
        found = replace(found, count=count or found.count)
    except MosloraError as error:
        return ShownComparison(title, [f"{title}: not compared: {first_line(error)}"])
    lines = list(remarks(found))
    if differing:
        lines.append(f"these models also differ in {some(differing, most=8)}")
    return ShownComparison(title, conclusions(found), found.exploratory or found.named, tables(found), lines)
