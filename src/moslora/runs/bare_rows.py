"""Runs of bare instructions: rows without options or accepted answers, which no protocol can score."""

from collections.abc import Iterable

from moslora.recipe import Recipe
from moslora.runs.run import Run
from moslora.tasks import INSTRUCTION


def remark_on_bare_rows(run: Run) -> str:
    """Remark that the rows of ``run`` cannot be scored, with the fix; empty if it was trained on rows of tasks."""
    if set(trained_tasks(run)) != {INSTRUCTION}:
        return ""
    return (
        "nothing scores the rows of this run yet: they have neither options nor accepted answers; to score such rows,"
        " make them a task with `answer` and `match` (docs/tasks.md, Answers in words)"
    )


def asks_nothing(recipe: Recipe, tasks: Iterable[str]) -> bool:
    """Whether there is nothing to evaluate: all training rows are bare instructions, and the recipe's ``evaluation``
    names neither tasks nor a source. ``tasks`` are those of the training rows."""
    evaluation = recipe.evaluation
    return set(tasks) == {INSTRUCTION} and evaluation.tasks is None and evaluation.source is None


def trained_tasks(run: Run) -> list[str]:
    """Names of the tasks of the rows that ``run`` was trained on."""
    return list(run.facts.get("data", {}).get("tasks", {}))
