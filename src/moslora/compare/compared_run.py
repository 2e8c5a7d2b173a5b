"""Record of a run in a comparison: its answers, its arm, and how it was trained."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from moslora.runs.answers import TaskAnswers
from moslora.runs.evaluation import Evaluation, QuestionIds
from moslora.runs.outcomes import Outcome


@dataclass(frozen=True)
class ComparedRun:
    """A run with its answers; also a base model or a log of another program, which were not trained here.

    Attributes:
        evaluation: answers to all questions, or to those that are compared.
        path: run, folder of the evaluation, or log, as the user named it.
        name: name of the run.
        arm: key of the arm, the same for all runs that differ only in the seed.
        seed: seed of the run; ``None`` for a model that was not trained.
        training_facts: field -> value, of the training rows and steps; empty for what was not trained here.
        chosen_step: step of the adapter, if validations chose it by the rule in ``training_facts``.
        validation_loss: mean over the label tokens of the held-out training rows in nats, of the run's result;
            ``None`` for a base, a checkpoint, and a run without held-out rows.
    """

    evaluation: Evaluation
    path: Path
    name: str = ""
    arm: str = ""
    seed: int | None = None
    training_facts: Mapping[str, str] = field(default_factory=dict)
    chosen_step: int | None = None
    validation_loss: float | None = None

    @classmethod
    def of(cls, evaluation: Evaluation) -> "ComparedRun":
        """Return an evaluation as a compared run that moslora did not train: a base, or a log of another program."""
        name = "base" if evaluation.of_base and evaluation.run else evaluation.folder.name
        return cls(evaluation, evaluation.folder, name, arm=str(evaluation.folder))

    @property
    def tasks(self) -> Mapping[str, TaskAnswers]:
        """Task -> answers."""
        return self.evaluation.tasks

    def average(self, outcome: Outcome) -> float | None:
        """Return the macro average of an outcome, or an outcome of the run itself; ``None`` if it has none."""
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
