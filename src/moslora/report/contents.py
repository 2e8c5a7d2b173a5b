"""What a report shows of its runs, before anything is drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from moslora.compare.comparable import how_asked
from moslora.compare.find import Read
from moslora.compare.runs import read_complete
from moslora.evaluation import display
from moslora.report.bases import base_model
from moslora.report.comparisons import ShownComparison, comparisons
from moslora.report.questions import Changed, examples_asked, most_changed
from moslora.report.runs import Reported, ReportedRun
from moslora.report.texts import Rewritten, turned
from moslora.runs.evaluation import Evaluation

Shown = TypeVar("Shown")

MOST_CHANGED = 8
"""Questions that gained most, and as many that lost most; or whose answers in words turned right, or wrong."""


@dataclass(frozen=True)
class Contents:
    """What a report shows.

    Attributes:
        runs: one or more, as far as they got.
        same_questions: whether all scores are of the same questions.
        left_out: a line on the questions that only some runs were asked; empty if there are none.
        changed: ``gained`` and ``lost`` -> the questions that changed most in the first run; empty if none did.
        rewritten: the same of answers in words, which turned right or wrong.
    """

    runs: Sequence[ReportedRun]
    same_questions: bool
    left_out: str
    changed: dict[str, list[Changed]]
    rewritten: dict[str, list[Rewritten]]
    comparisons: Sequence[ShownComparison]

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

    @cached_property
    def bases(self) -> dict[str, ReportedRun]:
        """Name of each base -> the first run that has it."""
        found: dict[str, ReportedRun] = {}
        for run in self.runs:
            if run.base:
                found.setdefault(run.base_name, run)
        return found

    @property
    def base(self) -> Evaluation | None:
        """The base's evaluation, if there is exactly one."""
        if len(self.bases) != 1:
            return None
        (first_run,) = self.bases.values()
        return first_run.base

    @property
    def asked_alike(self) -> bool:
        """Whether the same questions were put to one base and its runs in the same way."""
        evaluations = [run.tuned for run in self.runs if run.tuned]
        evaluations += [run.base for run in self.bases.values() if run.base]
        models = [{**one.settings.model, "base": base_model(one.settings)} for one in evaluations]
        one_model = all(model == models[0] for model in models)
        ways = how_asked(evaluations)
        one_way = all(way == ways[0] for way in ways)
        return self.same_questions and one_model and one_way

    @property
    def answers(self) -> list[tuple[str, Evaluation]]:
        """Arm and answers of each run that was evaluated."""
        return [(run.arm, run.tuned) for run in self.runs if run.tuned]

    @property
    def main_comparisons(self) -> list[ShownComparison]:
        """Those whose figures open the section of answers: against bases, or else all."""
        against_bases = [comparison for comparison in self.comparisons if comparison.against_base]
        return against_bases or list(self.comparisons)

    @property
    def remarks(self) -> list[str]:
        """What a reader of the scores must know: questions that were left out, and the evaluations' own remarks."""
        evaluated = [(run.name, run.tuned_results) for run in self.runs]
        evaluated += [(name, run.base_results) for name, run in self.bases.items()]
        found = []
        if self.left_out:
            found.append(self.left_out)
        for name, results in evaluated:
            if results is not None:
                found += [f"{name}: {remark}" for remark in display.remarks(results)]
        return found


def gather(
    found: Reported, paths: Sequence[Path], *, evaluation: str | None = None, read: Read = read_complete
) -> Contents:
    """The contents of a report on the runs ``found`` at ``paths``.

    Args:
        evaluation: name of the evaluation's folder in a run; ``None`` for the only one, or the recipe's.
        read: reads an evaluation.
    """
    runs, shared, left_out = found
    changed, rewritten = _against_base(runs[0])
    return Contents(
        runs=runs,
        same_questions=bool(shared),
        left_out=left_out,
        changed=changed,
        rewritten=rewritten,
        comparisons=comparisons(runs, paths, evaluation=evaluation, read=read),
    )


def _against_base(run: ReportedRun) -> tuple[dict[str, list[Changed]], dict[str, list[Rewritten]]]:
    """The questions that changed most against the base, and the answers in words that turned right or wrong; empty
    without a base, and where the rows are not at hand."""
    if run.tuned is None or run.base is None:
        return {}, {}
    examples = examples_asked(run.run.recipe.questions, run.tuned.settings)
    changed = most_changed(run.base, run.tuned, examples, most=MOST_CHANGED)
    rewritten = turned(run.base, run.tuned, examples, most=MOST_CHANGED)
    return _by_kind(*changed), _by_kind(*rewritten)


def _by_kind(gained: list[Shown], lost: list[Shown]) -> dict[str, list[Shown]]:
    """What is shown by kind; empty if there is nothing."""
    if not gained and not lost:
        return {}
    return {"gained": gained, "lost": lost}
