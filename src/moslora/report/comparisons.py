"""Comparisons on the page: of all arms, with the first one or as planned, and of each base with its arms.

All contrasts with one arm are a family. `moslora.compare` computes them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from moslora.compare.arms import Arm, all_runs
from moslora.compare.comparable import training_differences
from moslora.compare.compared_run import ComparedRun
from moslora.compare.comparison import Comparison, compare_arms, compare_planned
from moslora.compare.conclusion import conclusions, remarks
from moslora.compare.contrast import Contrast
from moslora.compare.display import tables
from moslora.compare.index import read_index
from moslora.errors import MosloraError, first_line, some
from moslora.report.runs import ReportedRun


@dataclass(frozen=True)
class ShownComparison:
    """A comparison as the page shows it, or the reason why there is none.

    Attributes:
        title: its heading.
        verdicts: conclusions, or the reason.
        contrasts: contrasts that are drawn.
        tables: its tables, header first.
        lines: remarks below the tables.
    """

    title: str
    verdicts: Sequence[str]
    contrasts: Sequence[Contrast] = ()
    tables: Sequence[list[list[str]]] = ()
    lines: Sequence[str] = ()


def against_each_other(runs: Sequence[ReportedRun], paths: Sequence[Path]) -> list[ShownComparison]:
    """Return the comparison of the arms with the first, or the planned one if the only path is an experiment."""
    arms = _arms([(run.arm, run.compared) for run in runs])
    if len(arms) < 2:
        return []
    index = read_index(paths[0]) if len(paths) == 1 else None
    compare: Callable[..., Comparison] = _compare_with_first
    if index is not None:
        compare = partial(compare_planned, index=index, outcome=index.outcome)
    return [_shown("Against each other", arms, compare)]


def against_bases(runs: Sequence[ReportedRun]) -> list[ShownComparison]:
    """Return the comparison of each base with its arms."""
    comparisons = []
    with_base = [run for run in runs if run.base]
    for name in dict.fromkeys(run.base_name for run in with_base):
        of_base = [run for run in with_base if run.base_name == name]
        bases = [(name, ComparedRun.of(run.base)) for run in of_base[:1] if run.base]
        arms = _arms([*bases, *((run.arm, run.tuned) for run in of_base)])
        comparisons.append(_shown(f"Against the {name}", arms, _compare_with_first))
    return comparisons


def _arms(runs: Sequence[tuple[str, ComparedRun | None]]) -> list[Arm]:
    """Group pairs of an arm's name and a run into arms. A run that is ``None`` has no answers and is left out."""
    runs_by_arm: dict[str, dict[int | None, ComparedRun]] = {}
    for name, run in runs:
        if run is not None:
            runs_by_arm.setdefault(name, {})[run.seed] = run
    return [Arm(name, by_seed) for name, by_seed in runs_by_arm.items()]


def _compare_with_first(arms: Sequence[Arm], *, allowed: Sequence[str]) -> Comparison:
    """Return the comparison of every other arm with the first."""
    first, *others = arms
    return compare_arms(arms, contrasts=[(first.name, other.name) for other in others], allowed=allowed)


def _shown(title: str, arms: Sequence[Arm], compare: Callable[..., Comparison]) -> ShownComparison:
    """Return the result of ``compare``, or the reason why it refuses.

    Base, rows and steps may differ, since the page compares models. A line names what differs.
    """
    differing = list(training_differences(all_runs(arms)))
    try:
        comparison = compare(arms, allowed=differing).within(None)
    except MosloraError as error:
        return ShownComparison(title, [f"{title}: not compared: {first_line(error)}"])
    lines = list(remarks(comparison))
    if differing:
        lines.append(f"these models also differ in {some(differing, most=8)}")
    contrasts = comparison.exploratory or comparison.named
    return ShownComparison(title, conclusions(comparison), contrasts, tables(comparison), lines)
