"""Predictions on disk while they are made, so that a killed evaluation resumes where it was.

``settings.json``      what the predictions depend on, and a record per task; written first
``predictions.jsonl``  one line per question, appended and synced after each block
``results.json``       the numbers of all finished tasks in the folder, computed from the other two at the end
"""

import dataclasses
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from moslora.errors import MosloraError, UsageError, first_line, some
from moslora.evaluation.predictions import Prediction
from moslora.evaluation.results import Results, Settings, TaskRecord, summarise
from moslora.files import write_json, write_text, writing
from moslora.recipe.recipe import changed_keys
from moslora.runs.run import PREDICTIONS, RESULTS, SETTINGS


@dataclass(frozen=True)
class Head:
    """The content of ``settings.json``."""

    settings: Settings
    tasks: Mapping[str, TaskRecord]


@dataclass(frozen=True)
class Evaluation:
    """The folder of one evaluation, ``finished`` if it has results, or some of its questions (task -> ids).

    Each file is read once, when asked for.
    """

    folder: Path
    only: Mapping[str, Collection[str]] | None = None

    @property
    def finished(self) -> bool:
        return (self.folder / RESULTS).is_file()

    @property
    def settings(self) -> Settings:
        return self.head.settings

    @cached_property
    def head(self) -> Head:
        file = self.folder / SETTINGS
        try:
            return TypeAdapter(Head).validate_json(file.read_bytes())
        except (OSError, ValidationError):
            hint = "choose another --out or remove the folder"
            raise MosloraError(f"{file}: not an evaluation's settings; {hint}") from None

    @cached_property
    def unfinished(self) -> dict[str, tuple[int, int]]:
        """Tasks of which an evaluation was interrupted: the number of questions answered, and asked."""
        return unfinished_tasks(self.head, self._every)

    @cached_property
    def predictions(self) -> list[Prediction]:
        """In the order written."""
        return [p for p in self._every if self.only is None or p.id in self.only.get(p.task, ())]

    @cached_property
    def _every(self) -> list[Prediction]:
        file = self.folder / PREDICTIONS
        if not file.is_file():
            raise UsageError(f"{file}: no predictions here; `moslora eval` writes them")
        predictions: dict[str, Prediction] = {}
        # Bytes that are not UTF-8 are replaced, so that the message can name their line.
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").split("\n")[:-1], start=1):
            try:
                prediction = Prediction.from_json(line)
            except (ValueError, TypeError, AttributeError, KeyError) as error:
                hint = "remove the folder and evaluate again"
                raise MosloraError(f"{file}:{number}: not a prediction ({error!r}); {hint}") from None
            if predictions.setdefault(prediction.id, prediction) is not prediction:
                raise MosloraError(f"{file}:{number}: {prediction.id} appears twice; did two processes write here?")
        return list(predictions.values())

    @cached_property
    def results(self) -> Results:
        """Without the predictions."""
        file = self.folder / RESULTS
        if not self.finished:
            raise UsageError(f"{file}: no results here; `moslora eval` writes them")
        if self.only is not None:
            return summarise(self.settings, self.predictions, self.head.tasks)
        try:
            return TypeAdapter(Results).validate_json(file.read_bytes())
        except ValidationError as error:
            fault = first_line(error)
            raise MosloraError(f"{file}: not the results of an evaluation ({fault}); evaluate again") from None


def unfinished_tasks(head: Head, predictions: Iterable[Prediction]) -> dict[str, tuple[int, int]]:
    """The tasks with fewer ``predictions`` than the last evaluation asked for: both numbers."""
    answered = Counter(prediction.task for prediction in predictions)
    asked = {task: record.asked for task, record in head.tasks.items() if record.asked is not None}
    return {task: (answered[task], number) for task, number in asked.items() if answered[task] < number}


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
        earlier = Evaluation(folder)
        if (folder / SETTINGS).exists():
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
            self.head = Head(dataclasses.replace(settings, data={**then.data, **settings.data}), earlier.head.tasks)
        if (predictions := folder / PREDICTIONS).exists():
            content = predictions.read_bytes()
            os.truncate(predictions, content.rfind(b"\n") + 1)  # a killed process may have left part of a line
            self.predictions = {p.id: p for p in earlier.predictions}

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
