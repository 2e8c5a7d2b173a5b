"""Predictions on disk while they are made, so that a killed evaluation resumes where it was.

``settings.json``      what the predictions depend on, and a record per task; written first
``predictions.jsonl``  one line per question, appended and synced after each block
``results.json``       the numbers of all finished tasks in the folder, computed from the other two at the end
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from moslora.errors import UsageError, some
from moslora.files import append_text, drop_partial_line, write_text, writing
from moslora.runs.conditions import KEPT, Conditions, EvaluationHeader, TaskRecord, differences, read_header
from moslora.runs.evaluation import read_predictions, unfinished_tasks
from moslora.runs.predictions import Prediction
from moslora.runs.results import summarise
from moslora.runs.run import PREDICTIONS, RESULTS, SETTINGS


class Journal:
    """The predictions in one results folder, created if absent; with ``None`` in memory only.

    A prediction depends only on the question's id and the conditions, never on the tasks or the limit. So a folder of
    the same conditions is continued, also with more tasks or a higher limit.

    Raises:
        UsageError: the folder's predictions were made under other conditions.
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
        if (folder / SETTINGS).exists():
            self.header = _continued(folder, conditions)
        file = folder / PREDICTIONS
        if file.exists():
            drop_partial_line(file)
            kept = read_predictions(folder)
            answered = [prediction for prediction in kept if not prediction.refused]  # a server is asked these again
            if len(answered) < len(kept):
                write_text(file, _lines(answered))
            self.predictions = {prediction.id: prediction for prediction in answered}

    def record(self, tasks: Mapping[str, TaskRecord]) -> None:
        """Replaces the records of these tasks."""
        self.header = EvaluationHeader(self.header.conditions, {**self.header.tasks, **tasks})
        if self.folder is not None:
            write_text(self.folder / SETTINGS, self.header.to_json())

    def keep(self, predictions: Sequence[Prediction]) -> None:
        """Adds predictions of questions that had none, and syncs them to disk."""
        for prediction in predictions:
            assert prediction.id not in self.predictions, "a question was answered twice"
            self.predictions[prediction.id] = prediction
        if self.folder is None or not predictions:
            return
        append_text(self.folder / PREDICTIONS, _lines(predictions))

    def finish(self) -> None:
        """Writes ``results.json`` of all tasks evaluated here, not only those of the last call; without those that were
        interrupted, as an average over a part of a task is that of no task."""
        if self.folder is None:
            return
        partial = unfinished_tasks(self.header, self.predictions.values())
        records = {task: record for task, record in self.header.tasks.items() if task not in partial}
        finished = [prediction for prediction in self.predictions.values() if prediction.task in records]
        write_text(self.folder / RESULTS, summarise(self.header.conditions, finished, records).to_json())


def _lines(predictions: Sequence[Prediction]) -> str:
    return "".join(prediction.to_json() + "\n" for prediction in predictions)


def _continued(folder: Path, now: Conditions) -> EvaluationHeader:
    """The header of the evaluation in ``folder``, which goes on under the conditions of ``now``.

    Where the questions lie may change, as they have hashes, unless some of the folder are of tasks that lie elsewhere.
    """
    earlier = read_header(folder)
    then = earlier.conditions
    keeps_all_tasks = then.data.keys() <= now.data.keys()
    if keeps_all_tasks or then.source == now.source:
        changed = differences(then, now, *KEPT)
    else:
        changed = [*differences(then, now, *KEPT), f"source was {then.source}, is {now.source}"]
    if changed:
        raise UsageError(
            f"{folder}: holds predictions made with other settings ({some(changed, separator='; ')});"
            " choose another --out or remove the folder"
        )
    return replace(earlier, conditions=now.with_tasks_of(then))
