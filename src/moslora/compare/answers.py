"""The answers of one evaluation, as a comparison needs them: question by question, with what is known of the run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from moslora.errors import MosloraError, first_line
from moslora.evaluation import METRICS, Evaluation, Prediction, Settings

Outcome = Literal["accuracy", "log_probability"]
"""The number of a question that is compared.

``accuracy``: 1 if the answer is right, else 0, by the protocol's main metric (``cloze``: per character).
``log_probability``: log softmax(s)[right option] in nats, s the scores behind that metric (``cloze``: the options'
log-probabilities per character); it does not exist under ``generate``.
"""

COLUMNS = "columns.json"
"""The columns of `TaskAnswers` by task, in an evaluation of which no more was kept."""


@dataclass(frozen=True)
class TaskAnswers:
    """Answers to the questions of one task, column by column, in the order of the ids.

    Attributes:
        ids: of the questions, sorted.
        gold: position of the right option.
        correct: 1 or 0, see `Outcome`.
        log_probability: see `Outcome`; empty under ``generate``.
    """

    ids: tuple[str, ...]
    gold: tuple[int, ...]
    correct: tuple[int, ...]
    log_probability: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if {len(self.gold), len(self.correct), len(self.log_probability) or len(self.ids)} != {len(self.ids)}:
            raise ValueError("columns of different lengths")

    def of(self, outcome: Outcome) -> Sequence[float]:
        return self.correct if outcome == "accuracy" else self.log_probability


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
    """The columns of these predictions."""
    ordered = sorted(predictions, key=lambda p: p.id)
    rows = {task: [p for p in ordered if p.task == task] for task in dict.fromkeys(p.task for p in ordered)}
    accuracy, log_probability = METRICS[settings.primary], METRICS["log_probability"]
    return {
        task: TaskAnswers(
            ids=tuple(p.id for p in found),
            gold=tuple(p.gold for p in found),
            correct=tuple(int(accuracy(p)) for p in found),
            log_probability=tuple(log_probability(p) for p in found) if found[0].scores else (),
        )
        for task, found in rows.items()
    }
