"""Test questions that are also training rows (leaks), and the numbers without them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moslora.console import note
from moslora.data.overlap import DIGEST, digest
from moslora.evaluation.display import NONE, percent, percent_range
from moslora.evaluation.scores import Score, macro, score_task
from moslora.runs.adapter_folder import AdapterFolder
from moslora.runs.answers import TaskAnswers
from moslora.runs.settings import Leaks
from moslora.tasks import Example


@dataclass(frozen=True)
class WithoutLeaks:
    """The numbers of the questions that are not leaks."""

    compared_with: str  # as in `Leaks`
    leaks: Mapping[str, int]  # task -> number of questions left out
    tasks: Mapping[str, Score]  # without tasks that have only leaks
    macro: Score | None  # every task the same weight; ``None`` if a task has only leaks

    def line(self, primary: str) -> str | None:
        """The metric ``primary`` without the leaks, in percent; ``None`` if there are no leaks."""
        counts = [f"{task} {count}" for task, count in self.leaks.items() if count]
        if not counts:
            return None
        scores = {task: self.tasks.get(task) for task, count in self.leaks.items() if count}
        if len(self.leaks) > 1:
            scores["macro average"] = self.macro
        numbers = {name: score.value(primary) if score else None for name, score in scores.items()}
        values = [f"{name} {f'{percent(x[0])} ({percent_range(x[1])})' if x else NONE}" for name, x in numbers.items()]
        without = f"{primary.replace('_', ' ')} without them: {', '.join(values)}"
        return f"questions among {self.compared_with}: {', '.join(counts)}; {without}"


def without_leaks(
    tasks: Mapping[str, TaskAnswers], *, leaks: Mapping[str, Leaks], drifts: Mapping[str, float | None]
) -> WithoutLeaks:
    """The numbers of the answers that are not to leaks; all arguments by task."""
    counts: dict[str, int] = {}
    scores: dict[str, Score] = {}
    for task, answers in tasks.items():
        kept = answers.only(set(answers.ids).difference(leaks[task].ids))
        counts[task] = len(answers.ids) - len(kept.ids)
        if kept.ids:
            scores[task] = score_task(kept, drift=drifts[task])
    average = None
    if len(scores) == len(tasks):
        average = macro(list(scores.values()))
    compared_with = dict.fromkeys(found.compared_with for found in leaks.values())
    return WithoutLeaks(" and ".join(compared_with), counts, scores, average)


def find_leaks(folder: AdapterFolder, questions: Mapping[str, Sequence[Example]]) -> dict[str, Leaks]:
    """The leaks among all test ``questions``, by task; empty if the run has no record of its training rows. Texts are
    no questions, and have none."""
    file = folder.run.contents
    contents = file.read_bytes() if file.is_file() else b""
    if len(contents) != DIGEST * folder.manifest.get("trained_rows", -1):
        note("not known whether test questions were in the training rows: this adapter has no record of them")
        return {}
    asked = {task: rows for task, rows in questions.items() if not rows[0].is_text}
    trained = {contents[start : start + DIGEST] for start in range(0, len(contents), DIGEST)}
    found = {task: sorted(row.id for row in rows if digest(row) in trained) for task, rows in asked.items()}
    compared_with = f"the {folder.manifest['trained_rows']:,} rows this run was trained on"
    return {task: Leaks(compared_with, tuple(ids)) for task, ids in found.items()}
