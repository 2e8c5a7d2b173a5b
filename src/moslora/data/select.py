"""Selection of a run's training rows: a limit per task, and rows held out for validation."""

import random
from collections.abc import Mapping, Sequence

from moslora.errors import UsageError
from moslora.tasks import Example


def limit_rows(examples: Sequence[Example], *, rows: int | Mapping[str, int] | None, seed: int) -> list[Example]:
    """Draw at most ``rows`` random examples of each task (or ``rows[task]``), and keep the source's order.

    A larger limit keeps every example that a smaller one keeps.
    """
    if rows is None:
        return list(examples)
    kept: set[int] = set()
    for task in {example.task for example in examples}:
        positions = [position for position, example in enumerate(examples) if example.task == task]
        random.Random(f"{seed}/{task}").shuffle(positions)
        limit = rows if isinstance(rows, int) else rows.get(task)
        kept.update(positions[:limit])
    return [example for position, example in enumerate(examples) if position in kept]


def hold_out(examples: Sequence[Example], *, validation_rows: int, seed: int) -> tuple[list[Example], list[Example]]:
    """Split ``examples`` at random into training and validation examples.

    Rows that repeat a validation row, as in WinoGrande's nested sizes, are in neither part.
    """
    chosen = set(random.Random(f"{seed}/validation").sample(range(len(examples)), validation_rows))
    validation = [example for position, example in enumerate(examples) if position in chosen]

    def fields(row: Example) -> tuple[object, ...]:
        return row.task, row.context, row.question, row.choices, row.gold

    repeated = {fields(example) for example in validation}
    training = [example for example in examples if fields(example) not in repeated]
    if not training:
        raise UsageError("data.validation_rows: all other rows repeat validation rows; set fewer validation rows")
    return training, validation
