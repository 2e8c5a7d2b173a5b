"""Examples as JSON text, beside the encoded rows that are made of them."""

import json
from collections.abc import Sequence

from moslora.tasks import Example, Task


def to_json(examples: Sequence[Example]) -> str:
    """The examples without their wording, which is that of their task."""
    rows = []
    for example in examples:
        row = dict(vars(example))
        del row["wording"]
        rows.append(row)
    return json.dumps(rows, ensure_ascii=False)


def from_json(text: str | bytes, tasks: Sequence[Task]) -> list[Example]:
    """The examples, all of these ``tasks``, equal to what they were."""
    wordings = {task.name: task.wording for task in tasks if task.own}
    examples = []
    for row in json.loads(text):
        row["choices"] = tuple(row["choices"])
        examples.append(Example(**row, wording=wordings.get(row["task"])))
    return examples
