"""The header of an evaluation: its conditions, and what is known of each task. The content of ``settings.json``."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from moslora.errors import MosloraError
from moslora.runs.answers import TaskAnswers
from moslora.runs.conditions import Conditions
from moslora.runs.run import SETTINGS
from moslora.tasks.clusters import Clusters, known_clusters


@dataclass(frozen=True)
class Leaks:
    """Questions of a task whose choices and right answer are also a training row."""

    compared_with: str  # the training rows, in words
    ids: tuple[str, ...]  # of the questions, whether asked or not


@dataclass(frozen=True)
class TaskRecord:
    """Facts about a task besides its predictions."""

    # Largest change of a margin between a question alone and in its batch, over a sample of the task, in units of a
    # deciding score; ``None`` for generate, and before it is measured
    drift: float | None = None
    leaks: Leaks | None = None  # ``None`` if the training rows are unknown
    asked: int | None = None  # number of questions that the last evaluation asked; ``None`` before it asks
    # of the questions with an answer (`moslora.tasks.clusters`); ``None`` if each is alone, as far as is known
    clusters: Clusters | None = None


@dataclass(frozen=True)
class EvaluationHeader:
    """The content of ``settings.json``, which is written before the first prediction.

    Attributes:
        conditions: under which the predictions are made.
        tasks: what is known of each task.
    """

    conditions: Annotated[Conditions, Field(alias="settings")]
    tasks: Mapping[str, TaskRecord]

    def grouped(self, answers: Mapping[str, TaskAnswers]) -> dict[str, TaskAnswers]:
        """The answers by task with the clusters of their questions."""
        found = {}
        for task, of_task in answers.items():
            clusters = self.tasks[task].clusters if task in self.tasks else None
            # As they are known of the same data, since evaluations of earlier versions have no record.
            found[task] = of_task.grouped(clusters or known_clusters().get(self.conditions.data.get(task, ""), {}))
        return found

    def to_json(self) -> str:
        """The text of ``settings.json``. A task whose questions are each alone has no clusters."""
        tasks = {name: asdict(record) for name, record in self.tasks.items()}
        for record in tasks.values():
            if not record["clusters"]:
                del record["clusters"]
        return json.dumps({"settings": asdict(self.conditions), "tasks": tasks}, indent=2, ensure_ascii=False) + "\n"


def read_header(folder: Path) -> EvaluationHeader:
    """The header of the evaluation in ``folder``, also in the form of earlier versions."""
    file = folder / SETTINGS
    try:
        return TypeAdapter(EvaluationHeader).validate_json(file.read_bytes())
    except (OSError, ValidationError):
        hint = "choose another --out or remove the folder"
        raise MosloraError(f"{file}: not an evaluation's settings; {hint}") from None
