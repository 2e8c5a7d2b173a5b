"""A user's own tasks: rows of local files or of the hub, read by the columns that the task names."""

import hashlib
import math
from functools import partial
from pathlib import Path
from typing import Any

from moslora.choices import Split
from moslora.data import hub
from moslora.data.local import read_rows
from moslora.data.overlap import content
from moslora.errors import UsageError
from moslora.files import sha256
from moslora.tasks import Example, Task


def load(task: Task, split: Split) -> list[Example]:
    """The rows of a split. Without a test split, a share of the training rows is tested on and not trained on.

    Raises:
        UsageError: there is no such split or file, or its rows do not have what the task names.
    """
    if split == "dev":
        raise UsageError(f"{task.name} has no split 'dev'; must be train or test")
    if "test" in task.splits:
        return _read(task, split)
    rows = _read(task, "train")
    asked = [content(row)[:2] for row in rows]
    order = sorted(set(asked), key=lambda question: hashlib.sha256(repr(question).encode()).digest())
    tested = set(order[: math.ceil(task.held_out * len(order))])
    found = [row for row, question in zip(rows, asked, strict=True) if (question in tested) == (split == "test")]
    if not found:
        raise UsageError(
            f"tasks.{task.name}.held_out = {task.held_out}: leaves no {split} row of {len(rows)}; name a test file"
        )
    return found


def identity(task: Task) -> list[str]:
    """What changes whenever the rows of a task do: its declaration, and the hub's commit or its files' hashes."""
    if task.hub:
        return [repr(task), hub.commit(task.hub)]
    return [repr(task), *(sha256(_file(task, split)) for split in sorted(task.splits))]


def _read(task: Task, split: Split) -> list[Example]:
    if task.hub:
        return hub.load(task, split)
    return read_rows(_file(task, split), partial(_example, task, split))


def _file(task: Task, split: Split) -> Path:
    path = Path(task.splits[split]).expanduser()
    if not path.is_file():
        raise UsageError(
            f"{path}: no such file; it has the {split} rows of task {task.name} (a recipe's paths are relative to the"
            " file that declares the task, a finished run's to the folder where it was trained)"
        )
    return path


def _example(task: Task, split: Split, row: Any, *, number: int) -> Example:
    if not isinstance(row, dict):
        raise ValueError(f"expected an object with the columns of a question; found {type(row).__name__}")
    return task.example(row, f"{task.name}/{split}/{number}")
