"""Predictions on disk while they are made, so that a killed evaluation resumes where it was.

``settings.json``      what the predictions depend on, and a record per task; written first
``predictions.jsonl``  one line per question, appended and synced after each block
``results.json``       the numbers of all finished tasks in the folder, computed from the other two at the end
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moslora.errors import UsageError, some
from moslora.evaluation.results import summarise
from moslora.files import append_text, drop_partial_line, write_text, writing
from moslora.recipe.recipe import changed_keys
from moslora.runs.evaluation import read_predictions, unfinished_tasks
from moslora.runs.predictions import Prediction
from moslora.runs.run import PREDICTIONS, RESULTS, SETTINGS
from moslora.runs.settings import Head, Settings, TaskRecord, read_head


class Journal:
    """The predictions in one results folder, created if absent; with ``None`` in memory only.

    A prediction depends only on the question's id and the settings, never on the tasks or the limit. So a folder with
    the same settings is continued, also with more tasks or a higher limit.

    Raises:
        UsageError: the folder's predictions were made with other settings.
        MosloraError: a file in the folder cannot be read.
    """

    def __init__(self, folder: Path | None, settings: Settings) -> None:
        self.folder = folder
        self.head = Head(settings, {})
        self.predictions: dict[str, Prediction] = {}
        if folder is None:
            return
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        if (folder / SETTINGS).exists():
            self.head = _continued(folder, settings)
        file = folder / PREDICTIONS
        if file.exists():
            drop_partial_line(file)
            found = read_predictions(folder)
            answered = [prediction for prediction in found if not prediction.refused]  # a server is asked these again
            if len(answered) < len(found):
                write_text(file, _lines(answered))
            self.predictions = {prediction.id: prediction for prediction in answered}

    def record(self, tasks: Mapping[str, TaskRecord]) -> None:
        """Replaces the records of these tasks."""
        self.head = Head(self.head.settings, {**self.head.tasks, **tasks})
        if self.folder is not None:
            write_text(self.folder / SETTINGS, self.head.to_json())

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
        partial = unfinished_tasks(self.head, self.predictions.values())
        records = {task: record for task, record in self.head.tasks.items() if task not in partial}
        found = [prediction for prediction in self.predictions.values() if prediction.task in records]
        write_text(self.folder / RESULTS, summarise(self.head.settings, found, records).to_json())


def _lines(predictions: Sequence[Prediction]) -> str:
    return "".join(prediction.to_json() + "\n" for prediction in predictions)


def _continued(folder: Path, settings: Settings) -> Head:
    """The head of the evaluation in ``folder``, which goes on with these settings.

    Tasks that only one side knows are no change. Where the base lies may change, as it has a fingerprint; and where the
    questions lie, as they have hashes, unless some of the folder are of tasks that lie elsewhere.
    """
    earlier = read_head(folder)
    then = earlier.settings
    tasks = then.data.keys() & settings.data.keys()
    free = ["base", "source"] if then.data.keys() <= settings.data.keys() else ["base"]

    def must_agree(of: Settings) -> dict[str, Any]:
        data = {task: of.data[task] for task in tasks}
        skipped = {task: of.skipped.get(task, 0) for task in tasks}
        metadata = {key: value for key, value in of.metadata.items() if key not in free}
        return {**vars(of), "data": data, "skipped": skipped, "metadata": metadata}

    changed = changed_keys(must_agree(then), must_agree(settings))
    if changed:
        raise UsageError(
            f"{folder}: holds predictions made with other settings ({some(changed.values(), separator='; ')});"
            " choose another --out or remove the folder"
        )
    data = {**then.data, **settings.data}
    skipped = {**then.skipped, **settings.skipped}
    return Head(dataclasses.replace(settings, data=data, skipped=skipped), earlier.tasks)
