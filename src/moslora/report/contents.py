"""What a report shows of its runs, before anything is drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from moslora.compare.find import Read
from moslora.compare.runs import read_complete
from moslora.evaluation import Results, display
from moslora.report.comparisons import ShownComparison, comparisons
from moslora.report.questions import Changed, examples_asked, most_changed
from moslora.report.runs import ReportedRun
from moslora.runs.evaluation import Evaluation, in_common

MOST_CHANGED = 8
"""Questions that gained most, and as many that lost most."""


@dataclass(frozen=True)
class Contents:
    """What a report shows.

    Attributes:
        runs: one or more, as far as they got.
        changed: ``gained`` and ``lost`` -> the questions that changed most in the first run; empty if none did.
    """

    runs: Sequence[ReportedRun]
    comparisons: Sequence[ShownComparison]
    changed: dict[str, list[Changed]]

    @cached_property
    def arms(self) -> list[str]:
        """In the order of their first runs."""
        return list(dict.fromkeys(run.arm for run in self.runs))

    @cached_property
    def firsts(self) -> list[ReportedRun]:
        """The first run of each arm."""
        found: dict[str, ReportedRun] = {}
        for run in self.runs:
            found.setdefault(run.arm, run)
        return list(found.values())

    @property
    def base(self) -> Evaluation | None:
        """The base's evaluation, if all runs are compared with it on the same questions."""
        evaluated = [run for run in self.runs if run.tuned and run.base]
        against_base = [one for one in self.comparisons if one.against_base]
        if len(against_base) != 1 or not against_base[0].contrasts:
            return None
        _, left_out = in_common([run.tuned for run in evaluated if run.tuned])
        return None if left_out else evaluated[0].base

    @property
    def main_comparisons(self) -> list[ShownComparison]:
        """Those whose figures open the section of answers: against bases, or else all."""
        against_bases = [comparison for comparison in self.comparisons if comparison.against_base]
        return against_bases or list(self.comparisons)

    @property
    def remarks(self) -> list[str]:
        """What a reader of the scores must know: questions that were left out, and the evaluations' own remarks."""
        found = []
        for run in self.runs:
            if run.left_out:
                found.append(f"{run.name}: {run.left_out}")
        for name, results in self.evaluated.items():
            found += [f"{name}: {remark}" for remark in display.remarks(results)]
        return found

    @cached_property
    def evaluated(self) -> dict[str, Results]:
        """The results of each run, and of each base, by name."""
        found = {run.name: run.tuned_results for run in self.runs}
        for run in self.runs:
            found.setdefault(run.base_name, run.base_results)
        return {name: results for name, results in found.items() if results}


def gather(
    runs: Sequence[ReportedRun], paths: Sequence[Path], *, evaluation: str | None = None, read: Read = read_complete
) -> Contents:
    """The contents of a report on the ``runs`` that were found at ``paths``.

    Args:
        evaluation: name of the evaluation's folder in a run; ``None`` for the only one, or the recipe's.
        read: reads an evaluation.
    """
    compared = comparisons(runs, paths, evaluation=evaluation, read=read)
    return Contents(runs, compared, _against_base(runs[0]))


def _against_base(run: ReportedRun) -> dict[str, list[Changed]]:
    """The questions that changed most against the base; empty without a base, and where the rows are not at hand."""
    if run.tuned is None or run.base is None:
        return {}
    examples = examples_asked(run.run.recipe.questions, run.tuned.settings)
    return most_changed(run.base, run.tuned, examples, most=MOST_CHANGED)
