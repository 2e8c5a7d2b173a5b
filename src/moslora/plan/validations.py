"""What the validations of a run take, before it runs."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from moslora.data.encode import Encoder
from moslora.data.prepared import TrainingData
from moslora.errors import counted
from moslora.recipe import Recipe
from moslora.training.questions import COST_OF_A_SCORED_TOKEN, tokens_of_questions, validation_questions


@dataclass(frozen=True)
class Validations:
    """All validations of a run.

    Attributes:
        count: their number.
        measured: what one of them measures, in words.
        tokens: tokens of all that go through the model, and as many more as take as long as what each task costs
            beside; where no rows are at hand an estimate, without questions.
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
        if not self.tokens:
            return []
        share = self.trained_tokens / (tokens + self.trained_tokens)
        return [f"{counted(self.count, 'validation')} of {self.measured}, in about {share:.1%} of the time"]


def validations(
    model: PreTrainedModel,
    recipe: Recipe,
    encoder: Encoder | None,
    data: TrainingData | None,
    *,
    steps: int,
    tokens_per_row: float,
) -> Validations:
    """Those of a run of ``steps``, with their questions if its rows are at hand."""
    count = recipe.training.validations(steps)
    rows = recipe.data.validation_rows
    measured = counted(rows, "row")
    if data is None or encoder is None:
        return Validations(count, measured, count * rows * tokens_per_row)
    tokens = data.validation.token_count()
    questions = validation_questions(model, encoder.tokenizer, recipe, data)
    if questions is not None:
        measured += f" and {counted(questions.count, 'question')}"
        tokens += tokens_of_questions(questions)
    return Validations(count, measured, count * tokens)
