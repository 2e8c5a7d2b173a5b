"""The journal of an evaluation writes predictions to disk as they are made, so that a killed evaluation can resume.

``settings.json``      conditions of the predictions, and a record per task; written first
``predictions.jsonl``  one line per question, appended and synced after each block
``results.json``       scores of all finished tasks in the folder, computed from the other two files at the end
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from moslora.errors import UsageError, some
from moslora.files import append_text, drop_partial_line, write_text, writing
from moslora.runs.conditions import (
    AFFECTS_PREDICTIONS,
    Conditions,
    EvaluationHeader,
    TaskRecord,
    differences,
    read_header,
)
from moslora.runs.evaluation import read_predictions, unfinished_tasks
from moslora.runs.predictions import Prediction
from moslora.runs.results import Results, summarise
from moslora.runs.run import PREDICTIONS, RESULTS, SETTINGS


class Journal:
    """The predictions in one results folder, which is created if absent.

    Without a folder, as in all processes but the first, predictions are kept in memory only. A prediction depends only
    on the question's id and the conditions, never on the tasks or the limit. Therefore a folder of the same conditions
    can be continued with more tasks or a higher limit.

    Raises:
        UsageError: the folder's predictions were made under other or unknown conditions.
        MosloraError: a file in the folder cannot be read.
    """

    def __init__(self, folder: Path | None, conditions: Conditions) -> None:
        self.folder = folder
        self.header = EvaluationHeader(conditions, {})
        self.predictions: dict[str, Prediction] = {}
        if folder is None:
            return
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        file = folder / PREDICTIONS
        if (folder / SETTINGS).exists():
            self.header = _continue_header(folder, conditions)
        elif file.exists():
            raise UsageError(
                f"{folder}: has no {SETTINGS}, which says how its predictions were made; remove the folder"
            )
        if file.exists():
            drop_partial_line(file)
            kept = read_predictions(folder)
            answered = [prediction for prediction in kept if not prediction.refused]  # refused ones are asked again
            if len(answered) < len(kept):
                write_text(file, _lines(answered))
            self.predictions = {prediction.id: prediction for prediction in answered}

    def record(self, tasks: Mapping[str, TaskRecord]) -> None:
        """Replace the records of these tasks, and write ``settings.json``."""
        self.header = EvaluationHeader(self.header.conditions, {**self.header.tasks, **tasks})
        if self.folder is not None:
            write_text(self.folder / SETTINGS, self.header.to_json())

    def keep(self, predictions: Sequence[Prediction]) -> None:
        """Add predictions of questions that had none, and sync them to disk."""
        for prediction in predictions:
            assert prediction.id not in self.predictions, "a question was answered twice"
            self.predictions[prediction.id] = prediction
        if self.folder is None or not predictions:
            return
        append_text(self.folder / PREDICTIONS, _lines(predictions))

    def results(self) -> Results:
        """Scores of all finished tasks in the journal. Tasks with fewer answers than were asked are left out, because
        an average over a part of a task is not the task's score."""
        partial = unfinished_tasks(self.header, self.predictions.values())
        records = {task: record for task, record in self.header.tasks.items() if task not in partial}
        finished = [prediction for prediction in self.predictions.values() if prediction.task in records]
        return summarise(self.header.conditions, finished, records)

    def finish(self) -> None:
        """Write ``results.json``."""
        if self.folder is not None:
            write_text(self.folder / RESULTS, self.results().to_json())


def _lines(predictions: Sequence[Prediction]) -> str:
    return "".join(prediction.to_json() + "\n" for prediction in predictions)


def _continue_header(folder: Path, now: Conditions) -> EvaluationHeader:
    """Header from ``settings.json`` in ``folder``, with the conditions ``now``; its earlier tasks stay in them.

    Hashes identify the questions, so ``now`` may have another ``source`` if it has all tasks of the folder. Otherwise
    it may not, because a header has one source for all its tasks.

    Raises:
        UsageError: the folder's predictions were made under other conditions.
    """
    earlier = read_header(folder)
    before = earlier.conditions
    changed = [*differences(before, now, *AFFECTS_PREDICTIONS)]
    asks_all_tasks = before.data.keys() <= now.data.keys()
    if not asks_all_tasks and before.source != now.source:
        changed.append(f"source was {before.source}, is {now.source}")
    if changed:
        raise UsageError(
            f"{folder}: holds predictions made with other settings ({some(changed, separator='; ')});"
            " choose another --out or remove the folder"
        )
    return replace(earlier, conditions=now.with_tasks_of(before))
