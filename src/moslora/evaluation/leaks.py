"""Test questions that are also training rows (leaks), and the numbers without them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moslora.console import note
from moslora.data.overlap import DIGEST, digest
from moslora.evaluation.predictions import NONE, Prediction, Score, macro, percent, percent_range, score_task
from moslora.runs.adapter_folder import AdapterFolder
from moslora.runs.run import run_of
from moslora.tasks import Example


@dataclass(frozen=True)
class Leaks:
    """Questions whose choices and right answer are also a training row."""

    compared_with: str  # the training rows, in words
    ids: tuple[str, ...]  # of the questions, whether asked or not


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
    predictions: Mapping[str, Sequence[Prediction]], *, leaks: Mapping[str, Leaks], drifts: Mapping[str, float | None]
) -> WithoutLeaks:
    """The numbers of ``predictions`` without the leaks; all arguments by task."""
    gone = {task: set(found.ids) for task, found in leaks.items()}
    kept = {task: [p for p in rows if p.id not in gone[task]] for task, rows in predictions.items()}
    tasks = {task: score_task(rows, drift=drifts[task]) for task, rows in kept.items() if rows}
    return WithoutLeaks(
        compared_with=" and ".join(dict.fromkeys(found.compared_with for found in leaks.values())),
        leaks={task: len(rows) - len(kept[task]) for task, rows in predictions.items()},
        tasks=tasks,
        macro=macro(list(tasks.values())) if len(tasks) == len(predictions) else None,
    )


def find_leaks(run: AdapterFolder, questions: Mapping[str, Sequence[Example]]) -> dict[str, Leaks]:
    """The leaks among all test ``questions``, by task; empty if the run has no record of its training rows. Texts are
    no questions, and have none."""
    file = run_of(run.path).contents
    contents = file.read_bytes() if file.is_file() else b""
    if len(contents) != DIGEST * run.manifest.get("trained_rows", -1):
        note("not known whether test questions were in the training rows: this adapter has no record of them")
        return {}
    asked = {task: rows for task, rows in questions.items() if not rows[0].is_text}
    trained = {contents[start : start + DIGEST] for start in range(0, len(contents), DIGEST)}
    found = {task: sorted(row.id for row in rows if digest(row) in trained) for task, rows in asked.items()}
    compared_with = f"the {run.manifest['trained_rows']:,} rows this run was trained on"
    return {task: Leaks(compared_with, tuple(ids)) for task, ids in found.items()}
