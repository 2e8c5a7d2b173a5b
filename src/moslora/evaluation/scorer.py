"""A protocol of evaluation: how questions become predictions, batch by batch."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from transformers import PreTrainedModel

from moslora.data.encode import Encoder
from moslora.evaluation.batches import BLOCK_SIZE, in_batches
from moslora.evaluation.predictions import Prediction
from moslora.prompts import Format
from moslora.tasks import Example

Question = TypeVar("Question")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Scorer(ABC, Generic[Question, Found]):
    """A protocol with its model.

    Attributes:
        model: a causal language model on its device.
        encoder: of its tokenizer.
        format: of the prompts.
        batch_tokens: most tokens of a batch.
        block_size: questions computed together.
        primary: the metric that counts, a key of `moslora.evaluation.predictions.METRICS`.
    """

    model: PreTrainedModel
    encoder: Encoder
    format: Format
    batch_tokens: int

    block_size: ClassVar[int] = BLOCK_SIZE
    primary: ClassVar[str] = "accuracy"

    @abstractmethod
    def encode(self, example: Example) -> Question:
        """The question as tokens; fails if the protocol cannot score it."""

    @abstractmethod
    def length(self, question: Question) -> int:
        """Tokens that the question takes of a batch."""

    @abstractmethod
    def compute(self, questions: Sequence[Question]) -> Iterable[Found]:
        """The model's output for every question of a batch."""

    @abstractmethod
    def read(self, example: Example, question: Question, found: Found) -> Prediction:
        """The prediction in that output."""

    def score(self, examples: Sequence[Example], *, alone: bool = False) -> list[Prediction]:
        """Predictions in the order of ``examples``, which make up a block: their order and number decide the
        batches. ``alone``: every question by itself."""
        questions = [self.encode(example) for example in examples]
        lengths, tokens = [self.length(question) for question in questions], 1 if alone else self.batch_tokens
        found = in_batches(self.compute, questions, lengths=lengths, tokens=tokens)
        return [self.read(*each) for each in zip(examples, questions, found, strict=True)]
