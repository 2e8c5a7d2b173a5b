"""Predictions on disk while they are made, so that a killed evaluation resumes where it was.

``settings.json``      what the predictions depend on, and a record per task; written first
``predictions.jsonl``  one line per question, appended and synced after each block
``results.json``       the numbers of all finished tasks in the folder, computed from the other two at the end
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from moslora.errors import UsageError, some
from moslora.evaluation.results import summarise
from moslora.files import write_json, write_text, writing
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
            earlier = read_head(folder)
            then = earlier.settings
            both = then.data.keys() & settings.data.keys()  # tasks that only one side knows are not a change
            old, new = ({**vars(one), "data": {task: one.data[task] for task in both}} for one in (then, settings))
            # Where the base lies may change, as it has a fingerprint; and where the questions lie, as they have hashes,
            # unless some of the folder are of tasks that lie elsewhere.
            free = ["metadata.base"]
            if then.data.keys() <= settings.data.keys():
                free.append("metadata.source")
            if changed := changed_keys(old, new, free=tuple(free)):
                raise UsageError(
                    f"{folder}: holds predictions made with other settings ({some(changed, separator='; ')});"
                    " choose another --out or remove the folder"
                )
            self.head = Head(dataclasses.replace(settings, data={**then.data, **settings.data}), earlier.tasks)
        if (predictions := folder / PREDICTIONS).exists():
            content = predictions.read_bytes()
            os.truncate(predictions, content.rfind(b"\n") + 1)  # a killed process may have left part of a line
            self.predictions = {p.id: p for p in read_predictions(folder)}

    def record(self, tasks: Mapping[str, TaskRecord]) -> None:
        """Updates the records of these tasks. The larger drift stays: fewer questions may have a smaller one. Of the
        numbers of questions the last one counts: a smaller limit ends what was interrupted."""
        known = dict(self.head.tasks)
        for task, now in tasks.items():
            then = known.get(task, now)
            drifts = [record.drift for record in (then, now) if record.drift is not None]
            asked = then.asked if now.asked is None else now.asked
            known[task] = TaskRecord(max(drifts, default=None), now.leaks or then.leaks, asked)
        self.head = Head(self.head.settings, known)
        if self.folder is not None:
            write_json(self.folder / SETTINGS, dataclasses.asdict(self.head))

    def append(self, predictions: Sequence[Prediction]) -> None:
        """Adds predictions of questions that had none, and syncs them to disk."""
        assert not {p.id for p in predictions} & self.predictions.keys(), "a question was answered twice"
        self.predictions.update((p.id, p) for p in predictions)
        if self.folder is None or not predictions:
            return
        path = self.folder / PREDICTIONS
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write("".join(p.to_json() + "\n" for p in predictions))
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> None:
        """Writes ``results.json`` of all tasks evaluated here, not only those of the last call; without those that were
        interrupted, as an average over a part of a task is that of no task."""
        if self.folder is None:
            return
        partial = unfinished_tasks(self.head, self.predictions.values())
        records = {task: record for task, record in self.head.tasks.items() if task not in partial}
        found = [prediction for prediction in self.predictions.values() if prediction.task in records]
        write_text(self.folder / RESULTS, summarise(self.head.settings, found, records).to_json())
