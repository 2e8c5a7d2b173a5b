"""Examples as JSON text, beside the encoded rows that are made of them."""

from collections.abc import Sequence
from dataclasses import replace

from pydantic import TypeAdapter

from moslora.tasks import Example, Task

_EXAMPLES = TypeAdapter(list[Example])


def to_json(examples: Sequence[Example]) -> str:
    """The examples without their wording, which is that of their task."""
    plain = [replace(example, wording=None) for example in examples]
    return _EXAMPLES.dump_json(plain).decode()


def from_json(text: str | bytes, tasks: Sequence[Task]) -> list[Example]:
    """The examples, all of these ``tasks``, equal to what they were."""
    wordings = {task.name: task.wording for task in tasks if task.own}
    plain = _EXAMPLES.validate_json(text)
    return [replace(example, wording=wordings.get(example.task)) for example in plain]
