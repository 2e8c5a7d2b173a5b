"""Validations: the loss of the held-out training rows, and the accuracy of those that are asked as questions."""

from dataclasses import dataclass

import torch

from moslora.adapters import describe_batch
from moslora.base.failures import or_out_of_memory
from moslora.choices import BestBy
from moslora.data.prepared import RowTable
from moslora.errors import counted
from moslora.evaluation.evaluator import PreparedQuestions
from moslora.evaluation.intervals import Mean, mean_of
from moslora.runs.answers import by_task
from moslora.runs.best import in_words
from moslora.runs.outcomes import right
from moslora.training.loop import Parts

QUESTIONS = "validation_questions"
"""Key of the number of validation questions, in ``metrics.jsonl``, in ``run.json`` and in the manifests."""

EFFECTIVE_QUESTIONS = "validation_effective_questions"
"""Key of `Mean.effective_n` in ``metrics.jsonl``, where some of the questions are in a cluster."""


@dataclass(frozen=True)
class Validation:
    """What one validation has shown; the same on every process.

    Attributes:
        loss: mean over the label tokens of the validation rows, nats.
        answered: share of the validation questions answered right; ``None`` without questions.
    """

    loss: float
    answered: Mean | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """Its numbers by their names in ``metrics.jsonl``."""
        found = {"validation_loss": self.loss}
        if self.answered is not None:
            found["validation_accuracy"] = self.answered.value
            found[QUESTIONS] = self.answered.n
            if self.answered.clusters < self.answered.n:
                found[EFFECTIVE_QUESTIONS] = self.answered.effective_n
        return found

    @property
    def fields(self) -> list[str]:
        """Its numbers in words."""
        found = [f"validation_loss {in_words(self.loss, 'loss')}"]
        if self.answered is not None:
            found.append(f"accuracy {in_words(self.answered.value, 'accuracy')} of {self.answered.n:,}")
        return found

    def value(self, by: BestBy) -> float:
        """The number that decides; a run that is selected by accuracy has questions."""
        return self.metrics[f"validation_{by}"]


@dataclass(frozen=True)
class Validator:
    """The held-out rows of a run, and the questions among them that it is asked; ``None`` for no questions."""

    rows: RowTable
    questions: PreparedQuestions | None = None

    @property
    def question_count(self) -> int:
        if self.questions is None:
            return 0
        return self.questions.wanted_count

    def remarks(self) -> list[str]:
        """The line for the user on what is asked."""
        if self.questions is None:
            return []
        asked = counted(self.question_count, "validation question")
        return [
            f"{asked}, by protocol {self.questions.settings.protocol}, before the first step and at each validation"
        ]

    def measure(self, parts: Parts) -> Validation:
        """Validates the model of ``parts`` as it is. No random number is drawn, and nothing of the training changes."""
        objective = parts.accelerator.unwrap_model(parts.objective)
        objective.eval()  # without dropout
        try:
            loss = self.loss(parts)
            return Validation(loss, _answered(self.questions) if self.questions else None)
        finally:
            objective.train()
            describe_batch(objective)  # its adapters know of no batch

    @torch.no_grad()
    def loss(self, parts: Parts) -> float:
        """The mean loss per label token of the rows."""
        objective = parts.accelerator.unwrap_model(parts.objective)
        total = torch.zeros((), device=parts.accelerator.device)
        for batch in parts.passes(self.rows):
            loss, _ = objective(parts.micro_batch(batch, training=False))
            total += loss
        return float(parts.accelerator.reduce(total, reduction="sum")) / self.rows.label_count()


def _answered(questions: PreparedQuestions) -> Mean:
    """The share of the questions answered right, by the protocol's main metric, whatever their tasks."""
    tokens = questions.settings.batch_tokens
    with or_out_of_memory(
        f"out of GPU memory while validation questions are asked, in batches of {tokens:,} tokens; set a smaller"
        " evaluation.batch_tokens, or training.validation_questions=0"
    ):
        predictions = questions.ask()
    values: list[float] = []
    clusters: list[str] = []
    for task, answers in by_task(predictions).items():
        values += right(answers)
        clusters += answers.in_clusters(questions.clusters[task])
    return mean_of(values, clusters)
