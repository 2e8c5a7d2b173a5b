"""Validations: the loss of the held-out training rows, and the accuracy of the questions among them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from moslora.adapters import describe_batch
from moslora.base.failures import or_out_of_memory
from moslora.data.prepared import RowTable
from moslora.errors import counted
from moslora.evaluation.evaluator import ModelWithQuestions
from moslora.runs.answers import by_task
from moslora.runs.best import format_value
from moslora.runs.intervals import FEWEST_FOR_PERCENT, Mean, mean_of
from moslora.runs.outcomes import right
from moslora.training.loop import TrainState
from moslora.training.samples import NO_SAMPLES, Sampler, Samples

QUESTIONS = "validation_questions"
"""Key of the number of validation questions, in ``metrics.jsonl``, in ``run.json`` and in the manifests."""

EFFECTIVE_QUESTIONS = "validation_effective_questions"
"""Key of `Mean.effective_n` in ``metrics.jsonl``, where some of the questions are in a cluster."""


@dataclass(frozen=True)
class Validator:
    """Held-out rows of a run, the questions among them (``None`` if none are asked), and a ``sampler`` that writes
    answers to some (``None`` if none are written)."""

    rows: RowTable
    questions: ModelWithQuestions | None = None
    sampler: Sampler | None = None

    @property
    def question_count(self) -> int:
        """Number of questions that each validation asks."""
        if self.questions is None:
            return 0
        return self.questions.prepared.wanted_count

    def remarks(self) -> list[str]:
        """Line for the user on how many validation questions are asked; empty without questions."""
        if self.questions is None:
            return []
        questions = counted(self.question_count, "validation question")
        protocol = self.questions.prepared.conditions.protocol
        return [f"{questions}, by protocol {protocol}, before the first step and at each validation"]

    def measure(self, state: TrainState) -> tuple[dict[str, float], Samples]:
        """Validate the model of ``state`` as it is. No random number is drawn, and nothing of the training changes.

        Returns:
            Metrics by their names in ``metrics.jsonl``, the same on every process: the mean loss over the label tokens
            of the rows, in nats, and, if questions are asked, the share answered right and their number. And the
            samples.
        """
        objective = state.objective
        objective.eval()  # without dropout
        try:
            metrics = {"validation_loss": self.loss(state)}
            if self.questions is not None:
                answered = _answered(self.questions)
                metrics |= {"validation_accuracy": answered.value, QUESTIONS: answered.n}
                if answered.clusters < answered.n:
                    metrics[EFFECTIVE_QUESTIONS] = answered.effective_n
            return metrics, self.sampler.write() if self.sampler else NO_SAMPLES
        finally:
            objective.train()
            describe_batch(objective)  # its adapters know of no batch

    @torch.no_grad()
    def loss(self, state: TrainState) -> float:
        """Mean loss per label token of the rows, in nats."""
        total = torch.zeros((), device=state.accelerator.device)
        for batch in state.passes(self.rows):
            loss, _ = state.objective(state.micro_batch(batch, training=False))
            total += loss
        return float(state.accelerator.reduce(total, reduction="sum")) / self.rows.label_count()


def as_fields(metrics: Mapping[str, float]) -> list[str]:
    """Texts of the metrics of `Validator.measure` for a printed line."""
    fields = [f"validation_loss {format_value(metrics['validation_loss'], 'loss')}"]
    if QUESTIONS in metrics:
        accuracy = format_value(metrics["validation_accuracy"], "accuracy")
        if metrics[QUESTIONS] < FEWEST_FOR_PERCENT:
            accuracy = str(round(metrics["validation_accuracy"] * metrics[QUESTIONS]))
        fields.append(f"accuracy {accuracy} of {metrics[QUESTIONS]:,}")
    return fields


def _answered(questions: ModelWithQuestions) -> Mean:
    """Share of the questions answered right, by the protocol's main metric, over all tasks together."""
    tokens = questions.model.batch_tokens
    with or_out_of_memory(
        f"out of GPU memory while validation questions are asked, in batches of {tokens:,} tokens; set a smaller"
        " evaluation.batch_tokens, or training.validation_questions=0"
    ):
        predictions = questions.ask()
    values: list[float] = []
    clusters: list[str] = []
    for task, answers in by_task(predictions).items():
        values += right(answers)
        clusters += answers.in_clusters(questions.prepared.clusters[task])
    return mean_of(values, clusters)
