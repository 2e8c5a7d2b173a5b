"""A run as it is compared: its answers, the arm that it belongs to, and how it was made."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from moslora.runs.answers import TaskAnswers
from moslora.runs.evaluation import Evaluation, QuestionIds
from moslora.runs.outcomes import Outcome


@dataclass(frozen=True)
class ComparedRun:
    """A run, a model that was not trained here, or a log, with its answers.

    Attributes:
        evaluation: answers, or those to some of the questions.
        path: run, or folder of the evaluation, or log, as the user named it.
        name: of the run.
        arm: key of the arm, the same for all runs that differ only in the seed.
        seed: of the run; ``None`` of a model that was not trained.
        made: field -> value, of the rows and steps of the run; empty of a model that was not trained here.
        chosen_step: of the adapter, if validations chose it by the rule that is in ``made``.
        validation_loss: of the run's result, mean over the label tokens of the held-out training rows in nats; ``None``
            of a base or a checkpoint, and of a run that held no rows out.
    """

    evaluation: Evaluation
    path: Path
    name: str = ""
    arm: str = ""
    seed: int | None = None
    made: Mapping[str, str] = field(default_factory=dict)
    chosen_step: int | None = None
    validation_loss: float | None = None

    @classmethod
    def of(cls, evaluation: Evaluation) -> "ComparedRun":
        """Return the model of an evaluation as one that was not trained here."""
        name = "base" if evaluation.of_base and evaluation.run else evaluation.folder.name
        return cls(evaluation, evaluation.folder, name, arm=str(evaluation.folder))

    @property
    def tasks(self) -> Mapping[str, TaskAnswers]:
        return self.evaluation.tasks

    def average(self, outcome: Outcome) -> float | None:
        """Return the macro average of an outcome, or the run's own number; ``None`` if it has none."""
        if outcome.of_runs:
            return self.validation_loss
        columns = [answers.outcomes.get(outcome.name) for answers in self.tasks.values()]
        averages = [fmean(column) for column in columns if column]
        return fmean(averages) if averages else None

    def only(self, questions: QuestionIds) -> "ComparedRun":
        """Return the run with the answers to these questions alone."""
        return replace(self, evaluation=self.evaluation.only(questions))

    def restricted_to(self, tasks: Collection[str]) -> "ComparedRun":
        """Return the run with the answers to these tasks alone."""
        return replace(self, evaluation=self.evaluation.restricted_to(tasks))


def evaluations_of(runs: Collection[ComparedRun]) -> list[Evaluation]:
    """Return the evaluations of these runs."""
    return [run.evaluation for run in runs]
