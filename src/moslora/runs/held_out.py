"""The validation loss of a run as an outcome: one number of each run, in the place of answers to questions."""

from dataclasses import replace

from moslora.runs.answers import TaskAnswers
from moslora.runs.evaluation import Evaluation
from moslora.runs.run import result_of

HELD_OUT = "held-out rows"
"""What stands for a task."""

VALIDATION_LOSS = "validation_loss"
"""The outcome: mean over the label tokens of the held-out training rows, nats."""


def with_validation_loss(evaluation: Evaluation) -> Evaluation:
    """With the validation loss of the run's result, one number, in the place of answers. An evaluation of a base, of a
    checkpoint, or of a run that held no rows out has none, and so no tasks."""
    loss = evaluation.validation_loss
    run = evaluation.run
    if run is not None and result_of(evaluation.folder) == evaluation.folder:
        loss = run.validation_loss
    tasks = {}
    if loss is not None:
        tasks[HELD_OUT] = TaskAnswers(ids=(VALIDATION_LOSS,), outcomes={VALIDATION_LOSS: (loss,)})
    return replace(evaluation, tasks=tasks)
