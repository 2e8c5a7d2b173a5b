"""Test questions that are also training rows (leaks), and the numbers without them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moslora.console import note
from moslora.data.overlap import leaked
from moslora.data.select import select
from moslora.data.sources import data_hash
from moslora.errors import MosloraError, UsageError, first_line
from moslora.evaluation.predictions import Prediction, Score, macro, percent, score_task
from moslora.runs.adapter_folder import AdapterFolder
from moslora.tasks import Example


@dataclass(frozen=True)
class Leaks:
    """Questions whose choices and right answer are also a training row.

    Attributes:
        compared_with: the training rows, in words.
        ids: of the questions, whether asked or not.
    """

    compared_with: str
    ids: tuple[str, ...]


@dataclass(frozen=True)
class WithoutLeaks:
    """The numbers of the questions that are not leaks.

    Attributes:
        compared_with: the training rows, in words.
        leaks: task -> number of questions left out.
        tasks: task -> score, without tasks that have only leaks.
        macro: every task the same weight; ``None`` if a task has only leaks.
    """

    compared_with: str
    leaks: Mapping[str, int]
    tasks: Mapping[str, Score]
    macro: Score | None

    def line(self, primary: str) -> str | None:
        """The metric ``primary`` without the leaks, in percent; ``None`` if there are no leaks."""
        counts = {task: count for task, count in self.leaks.items() if count}
        if not counts:
            return None
        scores = {**{task: self.tasks.get(task) for task in counts}, "macro average": self.macro}
        error = primary.replace("accuracy", "standard_error")
        values = [
            f"{name} {percent(getattr(score, primary, None), getattr(score, error, None))}"
            for name, score in scores.items()
        ]
        return (
            f"questions among {self.compared_with}: {', '.join(f'{task} {count}' for task, count in counts.items())};"
            f" {primary.replace('_', ' ')} without them: {', '.join(values)}"
        )


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


def find_leaks(run: AdapterFolder, questions: Mapping[str, Sequence[Example]]) -> Leaks | None:
    """The leaks among all test ``questions``, by task, for a run's model or its base.

    ``None``, with a note, if the rows that the run was trained on are unknown, missing or changed.
    """
    recipe = run.recipe
    try:
        if "data" not in run.manifest:
            raise UsageError(f"{run.path}: an imported adapter, which does not record its training rows")
        rows = select(recipe.data, recipe.training_tasks, recipe.questions, seed=recipe.seed).training
        if data_hash(rows) != run.manifest["data"]["sha256"]:
            raise UsageError(f"{recipe.data.source}: its rows have changed since this run")
    except MosloraError as error:
        note(f"cannot check whether test questions were in the training rows: {first_line(error)}")
        return None
    found = leaked([row for task in questions.values() for row in task], rows)
    return Leaks(f"the {len(rows):,} rows this run was trained on", tuple(sorted(found)))
