"""Confusion matrix of a task whose questions all have the same options."""

from collections import Counter

from moslora.runs.answers import TaskAnswers
from moslora.tasks import Task

NO_ANSWER = "no answer"
"""Title of the last column of a `confusion`."""

MOST_OPTIONS = 20
"""Maximum number of options for which a confusion matrix is made."""


def shared_options(task: Task) -> tuple[str, ...]:
    """Options that all questions of a user's task share; none if they differ or are more than `MOST_OPTIONS`."""
    return task.fixed_options if task.own and len(task.fixed_options) <= MOST_OPTIONS else ()


def confusion(answers: TaskAnswers, *, options: int) -> list[list[int]]:
    """Number of questions by right option (row) and chosen option (column), shape ``(options, options + 1)``; the last
    column counts questions without an answer."""
    counts = Counter(zip(answers.gold, answers.chosen, strict=True))
    return [[counts[right, chosen] for chosen in (*range(options), None)] for right in range(options)]
