"""What the validations of a run take, before it runs."""

from dataclasses import dataclass

from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.data.prepared import TrainingData
from moslora.data.sources import MIXTURE
from moslora.errors import counted
from moslora.recipe import Recipe
from moslora.training.questions import (
    COST_OF_A_SCORED_TOKEN,
    SHARE_OF_TRAINING,
    tokens_of_questions,
    validation_questions,
)


@dataclass(frozen=True)
class Validations:
    """All validations of a run.

    Attributes:
        count: their number.
        measured: what one of them measures, in words; empty if there is nothing.
        tokens: tokens of all that go through the model, and as many more as take as long as what each task costs
            beside; an estimate where no rows are at hand.
    """

    count: int
    measured: str
    tokens: float

    @property
    def trained_tokens(self) -> float:
        """As many tokens of training as take the same time."""
        return COST_OF_A_SCORED_TOKEN * self.tokens

    def line(self, *, tokens: int) -> list[str]:
        """What they take of a run that trains on so many ``tokens``; no line if there is nothing to validate."""
        if not self.measured:
            return []
        share = self.trained_tokens / (tokens + self.trained_tokens)
        validations = counted(self.count, "validation")
        return [f"{validations} of {self.measured}, in about {share:.1%} of the time"]


def counted_validations(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, data: TrainingData, *, steps: int
) -> Validations:
    """Those of a run whose rows are at hand."""
    count = recipe.training.validations(steps)
    if not len(data.validation):
        return Validations(count, "", 0)
    measured = counted(len(data.validation), "row")
    tokens = data.validation.token_count()
    questions = validation_questions(model, tokenizer, recipe, data)
    if questions is not None:
        measured += f" and {counted(questions.count, 'question')}"
        tokens += tokens_of_questions(questions)
    return Validations(count, measured, count * tokens)


def estimated_validations(recipe: Recipe, *, steps: int, tokens_per_row: float) -> Validations:
    """Those of a run whose rows are not here; a question has about as many tokens as a row."""
    training = recipe.training
    rows = recipe.data.validation_rows
    count = training.validations(steps)
    if not rows:
        return Validations(count, "", 0)
    trained_rows = steps * training.global_batch_size
    if training.validation_questions is not None:
        questions = training.validation_questions
    elif recipe.data.source == MIXTURE:  # whose rows do not say what their options are
        questions = 0
    else:
        questions = min(rows, int(SHARE_OF_TRAINING * trained_rows / COST_OF_A_SCORED_TOKEN / count))
    measured = counted(rows, "row")
    if questions:
        measured += f" and about {counted(questions, 'question')}"
    return Validations(count, measured, count * (rows + questions) * tokens_per_row)
