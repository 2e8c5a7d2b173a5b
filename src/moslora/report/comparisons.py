"""The comparisons on the page: the arms against the first, and each base's arms against it.

Arms are compared task by task, over the questions that both answered. So those with other tasks are compared apart;
all contrasts with one arm are a family.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from moslora.compare.arms import Arm, all_runs, load_arms
from moslora.compare.comparable import NotComparable
from moslora.compare.comparison import Comparison, compare_arms, compare_planned
from moslora.compare.conclusion import conclusions, remarks
from moslora.compare.contrast import Contrast
from moslora.compare.display import tables
from moslora.compare.find import Read
from moslora.compare.index import read_index
from moslora.errors import MosloraError, first_line, some
from moslora.report.runs import ReportedRun
from moslora.runs.evaluation import in_common


@dataclass(frozen=True)
class ShownComparison:
    """A comparison, or the reason why there is none."""

    title: str
    against_base: bool
    verdicts: Sequence[str]  # the conclusions, or the reason
    contrasts: Sequence[Contrast] = ()  # as they are drawn
    tables: Sequence[list[list[str]]] = field(default_factory=list)
    lines: Sequence[str] = field(default_factory=list)  # below the tables

    def by_first_arm(self) -> list[list[Contrast]]:
        """The contrasts, in a group for each arm that others are held against."""
        groups: dict[str, list[Contrast]] = {}
        for contrast in self.contrasts:
            groups.setdefault(contrast.before, []).append(contrast)
        return list(groups.values())


def comparisons(
    runs: Sequence[ReportedRun], paths: Sequence[Path], *, evaluation: str | None, read: Read
) -> list[ShownComparison]:
    """The arms against the first, or as their experiment has named it, and the arms of each base against it."""
    evaluated = [run for run in runs if run.tuned]
    of_base: dict[str, list[ReportedRun]] = {}
    for run in evaluated:
        if run.base:
            of_base.setdefault(run.base_name, []).append(run)

    def arms_of(these: Sequence[ReportedRun], *before: Path) -> list[Arm]:
        places = list(paths)
        if len(these) < len(runs):
            places = [run.run.path for run in these]
        return load_arms([*before, *places], evaluation=evaluation, read=read)

    found = []
    if len({run.arm for run in evaluated}) > 1:
        title = "Against each other"
        try:
            index = read_index(paths[0])
            arms = arms_of(evaluated)
            if len(paths) == 1 and index is not None and index.named:
                found.append(_shown(title, compare_planned(arms, index, outcome=index.outcome).within(None)))
            else:
                found += _against_first(title, arms)
        except MosloraError as error:
            found.append(_refused(title, error))
    for name, its_runs in of_base.items():
        title = f"Against the {name}"
        base = its_runs[0].base
        assert base is not None
        try:
            first, *others = arms_of(its_runs, base.folder)
            found += _against_first(title, [replace(first, name=name), *others], against_base=True)
        except MosloraError as error:
            found.append(_refused(title, error, against_base=True))
    return found


def _against_first(title: str, arms: Sequence[Arm], *, against_base: bool = False) -> list[ShownComparison]:
    """The comparisons of the arms with the first, one for all that have the same tasks in common with it."""
    first, *others = arms
    groups: dict[str, list[Arm]] = {}
    for other in others:
        shared, _ = in_common([run.evaluation for run in all_runs([first, other])])
        groups.setdefault(", ".join(shared), []).append(other)
    found = []
    for tasks, group in groups.items():
        own_title = title
        if len(groups) > 1:
            own_title += f": {', '.join(arm.name for arm in group)}, on {tasks or 'no common task'}"
        try:
            comparison, differing = _comparison(first, group)
        except MosloraError as error:
            found.append(_refused(own_title, error, against_base=against_base))
            continue
        shown = _shown(own_title, replace(comparison, count=len(others)), against_base=against_base)
        found.append(replace(shown, lines=[*shown.lines, *differing]))
    return found


def _comparison(first: Arm, others: Sequence[Arm]) -> tuple[Comparison, list[str]]:
    """Each of ``others`` against ``first``, on the questions that all answered; and a line on what else differs. Base,
    rows and steps may: what is compared are these models."""
    arms = [first, *others]
    questions, left_out = in_common([run.evaluation for run in all_runs(arms)])
    if questions:
        arms = [arm.each(lambda run: run.only(questions)) for arm in arms]
    contrasts = [(first.name, other.name) for other in others]
    differing = []
    try:
        found = compare_arms(arms, contrasts=contrasts)
    except NotComparable as error:
        fields = [one.field for one in error.unlike]
        if any(one.fix for one in error.unlike):
            raise
        found = compare_arms(arms, contrasts=contrasts, allowed=fields)
        differing = [f"these models also differ in {some(fields, most=8)}"]
    return replace(found, questions=left_out), differing


def _shown(title: str, found: Comparison, *, against_base: bool = False) -> ShownComparison:
    contrasts = found.exploratory or found.named
    lines = list(remarks(found))
    return ShownComparison(title, against_base, conclusions(found), contrasts, tables(found), lines)


def _refused(title: str, error: MosloraError, *, against_base: bool = False) -> ShownComparison:
    return ShownComparison(title, against_base, [f"{title}: not compared: {first_line(error)}"])
