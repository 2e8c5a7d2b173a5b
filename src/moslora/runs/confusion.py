"""Which options a model takes for which, in a task whose questions all have the same ones."""

from collections import Counter

from moslora.runs.answers import TaskAnswers
from moslora.tasks import Task

NO_ANSWER = "no answer"
"""Title of the last column of a `confusion`."""

MOST_OPTIONS = 20
"""Options up to which each has a row."""


def shared_options(task: Task) -> tuple[str, ...]:
    """Return the options of all questions of a user's task, if it lists them and they are few; otherwise none."""
    return task.fixed_options if task.own and len(task.fixed_options) <= MOST_OPTIONS else ()


def confusion(answers: TaskAnswers, *, options: int) -> list[list[int]]:
    """Return the number of questions by right option (row) and chosen option (column), shape ``(options, options +
    1)``; the last column has those without an answer."""
    counts = Counter(zip(answers.gold, answers.chosen, strict=True))
    return [[counts[right, chosen] for chosen in (*range(options), None)] for right in range(options)]
