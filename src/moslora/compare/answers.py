"""The answers of one evaluation, as a comparison needs them: question by question, with what is known of the run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from moslora.choices import Outcome
from moslora.compare.outcomes import OUTCOMES
from moslora.errors import MosloraError, first_line
from moslora.evaluation import Evaluation, Prediction, Settings

COLUMNS = "columns.json"
"""The columns of `TaskAnswers` by task, in an evaluation of which no more was kept."""


@dataclass(frozen=True)
class TaskAnswers:
    """Answers to the questions of one task, column by column, in the order of the ids, which are sorted.

    Attributes:
        gold: position of the right option.
        outcomes: the numbers that can be compared; empty for one that the protocol does not have.
    """

    ids: tuple[str, ...]
    gold: tuple[int, ...]
    outcomes: Mapping[Outcome, tuple[float, ...]]

    def __post_init__(self) -> None:
        if {len(column or self.ids) for column in (self.gold, *self.outcomes.values())} != {len(self.ids)}:
            raise ValueError("columns of different lengths")


@dataclass(frozen=True)
class Answers:
    """One evaluation of one run.

    Attributes:
        settings: how it was asked.
        tasks: task -> answers.
        path: of the run, or of the evaluation's folder, as the user named it.
        recipe: how it was trained, every field; ``None`` for a model that is no run's, and for a base.
        facts: of its ``run.json``; empty where ``recipe`` is ``None``.
        name: of the run.
        arm: the same for all runs that differ only in the seed.
    """

    settings: Settings
    tasks: Mapping[str, TaskAnswers]
    path: Path
    recipe: Mapping[str, Any] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    arm: str = ""

    @property
    def seed(self) -> int | None:
        return self.recipe["seed"] if self.recipe else None


def read_answers(folder: Path) -> Answers:
    """The answers in the folder of an evaluation, without what is known of its run."""
    evaluation, file = Evaluation(folder), folder / COLUMNS
    if not file.is_file():
        return Answers(evaluation.settings, by_task(evaluation.predictions, evaluation.settings), folder)
    try:
        tasks = TypeAdapter(dict[str, TaskAnswers]).validate_json(file.read_bytes())
    except ValidationError as error:
        raise MosloraError(f"{file}: not the answers of a run ({first_line(error)}); evaluate again") from None
    return Answers(evaluation.settings, tasks, folder)


def by_task(predictions: Sequence[Prediction], settings: Settings) -> dict[str, TaskAnswers]:
    """The columns of these predictions, in the order in which the tasks were asked."""
    ordered = sorted(predictions, key=lambda p: p.id)
    rows = {task: [p for p in ordered if p.task == task] for task in dict.fromkeys(p.task for p in predictions)}
    return {
        task: TaskAnswers(
            ids=tuple(p.id for p in found),
            gold=tuple(p.gold for p in found),
            outcomes={
                name: tuple(measure.of(p, settings) for p in found if p.scores or not measure.scored)
                for name, measure in OUTCOMES.items()
            },
        )
        for task, found in rows.items()
    }
