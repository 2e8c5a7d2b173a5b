"""Which of a source's training rows a run sees: a cap per task, and rows set aside for validation."""

import random
from collections.abc import Mapping, Sequence

from moslora.errors import UsageError
from moslora.tasks import Example


def cap(examples: Sequence[Example], *, rows: int | Mapping[str, int] | None, seed: int) -> list[Example]:
    """At most ``rows`` random examples of each task (or ``rows[task]``), in the source's order.

    A larger cap keeps every example that a smaller one keeps.
    """
    if rows is None:
        return list(examples)
    by_task: dict[str, list[int]] = {}
    for position, example in enumerate(examples):
        by_task.setdefault(example.task, []).append(position)
    kept: set[int] = set()
    for task, positions in by_task.items():
        limit = rows if isinstance(rows, int) else rows.get(task, len(positions))
        random.Random(f"{seed}/{task}").shuffle(positions)
        kept.update(positions[:limit])
    return [example for position, example in enumerate(examples) if position in kept]


def set_aside(examples: Sequence[Example], *, validation_rows: int, seed: int) -> tuple[list[Example], list[Example]]:
    """Training and validation examples, a random split of ``examples``: the test sets are never touched.

    A set may repeat rows (WinoGrande's nested sizes); no training row says the same as a validation row.

    Raises:
        UsageError: nothing would be left to train on.
    """
    if validation_rows >= len(examples):
        raise UsageError(
            f"data.validation_rows = {validation_rows}, but there are {len(examples)} training rows in all;"
            " set fewer aside"
        )
    chosen = set(random.Random(f"{seed}/validation").sample(range(len(examples)), validation_rows))
    validation = [example for position, example in enumerate(examples) if position in chosen]
    said = {_content(example) for example in validation}
    return [example for example in examples if _content(example) not in said], validation


def _content(example: Example) -> tuple[object, ...]:
    return example.task, example.context, example.question, example.choices, example.gold
