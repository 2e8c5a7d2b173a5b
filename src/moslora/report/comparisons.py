"""The comparisons on the page: the arms against each other, and the runs of each base against it."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from moslora.compare.arms import load_arms
from moslora.compare.comparable import NotComparable
from moslora.compare.comparison import compare_loaded
from moslora.compare.conclusion import lines, tables
from moslora.compare.contrast import Contrast
from moslora.compare.find import Read
from moslora.errors import MosloraError
from moslora.report.runs import ReportedRun


@dataclass(frozen=True)
class ShownComparison:
    """A comparison, or the reasons why there is none."""

    title: str
    figure: str  # the name of its first figure
    against_base: bool
    verdicts: Sequence[str]  # the conclusions, or the reasons
    contrasts: Sequence[Contrast] = ()  # as they are drawn
    intervals: str = ""  # what the intervals of the figures are
    tables: Sequence[list[list[str]]] = field(default_factory=list)
    lines: Sequence[str] = field(default_factory=list)  # below the tables, without the conclusions

    def by_first_arm(self) -> list[list[Contrast]]:
        """The contrasts, in a group for each arm that others are held against."""
        groups: dict[str, list[Contrast]] = {}
        for contrast in self.contrasts:
            groups.setdefault(contrast.before, []).append(contrast)
        return list(groups.values())


def comparisons(
    runs: Sequence[ReportedRun], paths: Sequence[Path], *, evaluation: str | None, read: Read
) -> list[ShownComparison]:
    """The arms against each other, if there are several, and the runs of each base against it."""
    found = []
    arms = {run.arm for run in runs}
    if len(arms) > 1:
        found.append(_compared("Against each other", "differences", paths, evaluation=evaluation, read=read))
    of_base: dict[str, list[ReportedRun]] = {}
    for run in runs:
        if run.base:
            of_base.setdefault(run.base_name, []).append(run)
    for name, its_runs in of_base.items():
        base = its_runs[0].base
        assert base is not None
        if len(of_base) == 1:
            title = "Against the base"
            figure = "differences-from-base"
            places = [base.folder, *paths]
        else:
            title = f"Against the {name}"
            figure = "differences-from-" + re.sub(r"\W+", "-", name).strip("-")
            places = [base.folder, *(run.run.path for run in its_runs)]
        found.append(_compared(title, figure, places, evaluation=evaluation, read=read, base=name))
    return found


def _compared(
    title: str, figure: str, places: Sequence[Path], *, evaluation: str | None, read: Read, base: str = ""
) -> ShownComparison:
    """The comparison of what is at ``places``; ``base`` names the base that all are held against, if it is one."""
    against_base = bool(base)
    try:
        arms = load_arms(places, evaluation=evaluation, read=read)
        found = compare_loaded(arms, places).within(None)
    except MosloraError as error:
        reasons = [f"Not compared: {reason}" for reason in _reasons(error, places, evaluation=evaluation)]
        return ShownComparison(title, figure, against_base, verdicts=reasons)
    contrasts: Sequence[Contrast] = found.exploratory or found.named
    if base:
        contrasts = [replace(contrast, before=base) for contrast in contrasts]
    intervals = "95 % interval"
    if found.named and found.main is None:
        intervals = "each 95 % interval by itself"
    verdicts = []
    others = []
    if found.named:
        for line in lines(found):
            if line.startswith("Conclusion: "):
                verdicts.append(line)
            else:
                others.append(line)
    return ShownComparison(
        title,
        figure,
        against_base,
        verdicts=verdicts,
        contrasts=contrasts,
        intervals=intervals,
        tables=tables(found),
        lines=others,
    )


def _reasons(error: MosloraError, places: Sequence[Path], *, evaluation: str | None) -> list[str]:
    """Why there is no comparison, a line each, with what helps.

    A report takes no ``--allow``: it names the command that compares nevertheless.
    """
    if isinstance(error, NotComparable):
        words = ["moslora", "compare", *(str(place) for place in places)]
        if evaluation:
            words += ["--evaluation", evaluation]
        error = NotComparable(error.unlike, compare=shlex.join(words))
    return str(error).splitlines()
