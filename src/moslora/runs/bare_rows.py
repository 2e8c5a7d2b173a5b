"""Runs of bare instructions: rows without options and without accepted answers, which nothing scores."""

from moslora.runs.run import Run
from moslora.tasks import INSTRUCTION

HOW_TO_SCORE = "make them a task with `answer` and `match` (docs/tasks.md, Answers in words)"


def remark_on_bare_rows(run: Run) -> str:
    """What nothing scores, and how it can be; empty if the run was trained on rows of tasks."""
    if not _has_bare_rows_alone(run):
        return ""
    return (
        "nothing scores the rows of this run yet: they have neither options nor accepted answers; to score such rows,"
        f" {HOW_TO_SCORE}"
    )


def asks_nothing(run: Run) -> bool:
    """Whether a run was trained on bare instructions alone, and its recipe names no other questions."""
    evaluation = run.recipe.evaluation
    return _has_bare_rows_alone(run) and evaluation.tasks is None and evaluation.source is None


def _has_bare_rows_alone(run: Run) -> bool:
    tasks = run.facts.get("data", {}).get("tasks", {})
    return set(tasks) == {INSTRUCTION}
