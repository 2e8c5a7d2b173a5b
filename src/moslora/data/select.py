"""The training rows of a run: a cap per task, rows set aside for validation, leaks left out."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moslora.data.overlap import leaked, read_back
from moslora.data.sources import load_examples, load_training, local_path
from moslora.errors import UsageError
from moslora.recipe import DataSection
from moslora.tasks import INSTRUCTION, Example, Questions, Task


@dataclass(frozen=True)
class Selection:
    """The rows of a run."""

    training: list[Example]
    validation: list[Example]
    leaks: dict[str, int] | None  # task -> training rows left out as test rows; ``None`` without ``data.drop_leaks``
    notes: list[str]  # what else was left out, and what could not be compared


def select(data: DataSection, tasks: Sequence[Task], questions: Questions, *, seed: int) -> Selection:
    """The rows of ``tasks`` that ``data`` describes; leaks are test rows of ``questions``.

    Leaks are left out last, so that two runs that differ only in this share every other row.
    """
    examples = load_training(tasks, source=data.source)
    chosen = cap(examples, rows=data.rows, seed=seed)
    training, validation = set_aside(chosen, validation_rows=data.validation_rows, seed=seed)
    repeats = len(chosen) - len(training) - len(validation)
    notes = [f"{repeats:,} rows repeat a validation row and are left out"] if repeats else []
    if not data.drop_leaks:
        return Selection(training, validation, None, notes)
    source, sets = questions.source, [task for task in questions.tasks if not task.own]
    if sets and source == data.source and (path := local_path(source)) and path.is_file():
        raise UsageError(f"data.drop_leaks: {source} is one file and has no test rows; set evaluation.source")
    test = [example for task in questions.tasks for example in load_examples(task, "test", source=source)]
    ids = leaked(training, test)
    leaks = dict(Counter(example.task for example in training if example.id in ids))
    if not (kept := [example for example in training if example.id not in ids]):
        raise UsageError(f"data.drop_leaks: every training row is also a test row of {source}; set another source")
    each = ", ".join(f"{task} {count:,}" for task, count in leaks.items()) or "none"
    notes.append(f"data.drop_leaks: rows left out because they are test rows: {each}")
    if free := sum(read_back(example).task == INSTRUCTION for example in kept):
        notes.append(f"data.drop_leaks: {free:,} instructions of no known template were not compared")
    return Selection(kept, validation, leaks, notes)


def cap(examples: Sequence[Example], *, rows: int | Mapping[str, int] | None, seed: int) -> list[Example]:
    """At most ``rows`` random examples of each task (or ``rows[task]``), in the source's order.

    A larger cap keeps every example that a smaller one keeps.
    """
    if rows is None:
        return list(examples)
    kept: set[int] = set()
    for task in {example.task for example in examples}:
        positions = [position for position, example in enumerate(examples) if example.task == task]
        random.Random(f"{seed}/{task}").shuffle(positions)
        kept.update(positions[: rows if isinstance(rows, int) else rows.get(task)])
    return [example for position, example in enumerate(examples) if position in kept]


def set_aside(examples: Sequence[Example], *, validation_rows: int, seed: int) -> tuple[list[Example], list[Example]]:
    """Training and validation examples, a random split of ``examples``.

    A set may repeat rows (WinoGrande's nested sizes); no training row equals a validation row.
    """
    refuse_all_set_aside(len(examples), validation_rows=validation_rows)
    chosen = set(random.Random(f"{seed}/validation").sample(range(len(examples)), validation_rows))
    validation = [example for position, example in enumerate(examples) if position in chosen]

    def said(row: Example) -> tuple[object, ...]:
        return row.task, row.context, row.question, row.choices, row.gold

    repeated = set(map(said, validation))
    training = [example for example in examples if said(example) not in repeated]
    if not training:
        raise UsageError("data.validation_rows: all other rows repeat those set aside; use fewer")
    return training, validation


def refuse_all_set_aside(rows: int, *, validation_rows: int) -> None:
    """Refuses a number of validation rows that leaves nothing to train on."""
    if validation_rows >= rows:
        raise UsageError(f"data.validation_rows = {validation_rows}: must be less than the {rows:,} rows of the source")
