"""The numbers once more, without the questions that the training rows give away."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moslora.evaluation.predictions import Prediction
from moslora.evaluation.scores import Score, macro, percent, score_task


@dataclass(frozen=True)
class Leaks:
    """Questions that the training rows give away: with their choices and the right answer.

    Attributes:
        compared_with: the training rows, in words.
        ids: of these questions, asked or not.
    """

    compared_with: str
    ids: frozenset[str]


@dataclass(frozen=True)
class WithoutLeaks:
    """The numbers once more, of the questions that the training rows do not give away.

    Attributes:
        compared_with: the training rows, in words.
        leaks: task -> questions left out.
        tasks: by task; none of a task whose questions are all leaks.
        macro: every task the same weight; ``None`` if a task has no question left.
    """

    compared_with: str
    leaks: Mapping[str, int]
    tasks: Mapping[str, Score]
    macro: Score | None

    def line(self, primary: str) -> str | None:
        """The metric ``primary`` without the leaks, in percent; ``None`` if there are none."""
        counts = {task: count for task, count in self.leaks.items() if count}
        if not counts:
            return None
        scores = {**{task: self.tasks.get(task) for task in counts}, "macro average": self.macro}
        error = primary.replace("accuracy", "standard_error")
        values = [
            f"{name} {percent(getattr(score, primary, None), getattr(score, error, None))}"
            for name, score in scores.items()
        ]
        return (
            f"questions among {self.compared_with}: {', '.join(f'{task} {count}' for task, count in counts.items())};"
            f" {primary.replace('_', ' ')} without them: {', '.join(values)}"
        )


def without(
    leaks: Leaks, by_task: Mapping[str, Sequence[Prediction]], drifts: Mapping[str, float] | None
) -> WithoutLeaks:
    kept = {task: [p for p in rows if p.id not in leaks.ids] for task, rows in by_task.items()}
    tasks = {task: score_task(rows, drift=drifts[task] if drifts else None) for task, rows in kept.items() if rows}
    return WithoutLeaks(
        compared_with=leaks.compared_with,
        leaks={task: len(rows) - len(kept[task]) for task, rows in by_task.items()},
        tasks=tasks,
        macro=macro(list(tasks.values())) if len(tasks) == len(by_task) else None,
    )


def joined_leaks(
    before: WithoutLeaks | None, now: WithoutLeaks | None, *, new: Sequence[str], tasks: Sequence[str]
) -> WithoutLeaks | None:
    """Those of ``tasks``: of the ``new`` ones from ``now``, of the others from ``before``.

    Returns:
        ``None`` where they are not known of some.
    """
    sides = {task: now if task in new else before for task in tasks}
    known = [side for side in sides.values() if side is not None]
    if len(known) < len(tasks):
        return None
    scores = {task: side.tasks[task] for task, side in zip(tasks, known, strict=True) if task in side.tasks}
    return WithoutLeaks(
        compared_with=" and ".join(dict.fromkeys(side.compared_with for side in known)),
        leaks={task: side.leaks[task] for task, side in zip(tasks, known, strict=True)},
        tasks=scores,
        macro=macro(list(scores.values())) if len(scores) == len(tasks) else None,
    )
