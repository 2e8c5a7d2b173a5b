"""The request, and the base class of the protocols: questions become predictions batch by batch."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import torch
from transformers import PreTrainedModel

from moslora.adapters import Families
from moslora.base.load import name_task
from moslora.choices import FormatName
from moslora.data.encode import Encoder
from moslora.evaluation.batches import BLOCK_SIZE
from moslora.evaluation.predictions import Prediction
from moslora.prompts.formats import Format
from moslora.recipe import EvaluationSection
from moslora.tasks import Example

Question = TypeVar("Question")
Found = TypeVar("Found")


class Request(EvaluationSection):
    """A recipe's section `evaluation`, with the prompt format and the source of the questions."""

    format: FormatName = "label"
    source: str = "wheel"


@dataclass(frozen=True)
class Scorer(ABC, Generic[Question, Found]):
    """A protocol with its model."""

    model: PreTrainedModel  # a causal language model on its device
    encoder: Encoder  # of its tokenizer
    format: Format  # of the prompts
    batch_tokens: int  # most tokens of a batch

    block_size: ClassVar[int] = BLOCK_SIZE  # questions computed together
    primary: ClassVar[str] = "accuracy"  # the metric that counts, a key of `moslora.evaluation.predictions.METRICS`

    @abstractmethod
    def encode(self, example: Example) -> Question:
        """The question as tokens; fails if the protocol cannot score it."""

    @abstractmethod
    def length(self, question: Question) -> int:
        """Tokens that the question takes of a batch."""

    def work(self, example: Example) -> int:
        """Characters that the model reads, which tell about how long a question takes."""
        options = self.format.options(example)
        return len("".join({option.prompt for option in options} | {option.answer for option in options}))

    @abstractmethod
    def compute(self, questions: Sequence[Question]) -> Iterable[Found]:
        """The model's output for every question of a batch."""

    @abstractmethod
    def read(self, example: Example, question: Question, found: Found) -> Prediction:
        """The prediction in that output."""

    @torch.inference_mode()
    def score(self, examples: Sequence[Example], *, alone: bool = False) -> list[Prediction]:
        """Predictions of one task's questions; their order and number decide the batches. ``alone``: each by itself."""
        name_task(self.model, None if examples[0].is_text else examples[0].task)
        questions = [self.encode(example) for example in examples]
        with Families(self.model).folded(self.model.dtype):
            found = self.in_batches(questions, tokens=1 if alone else self.batch_tokens)
        return [self.read(*each) for each in zip(examples, questions, found, strict=True)]

    def in_batches(self, questions: Sequence[Question], *, tokens: int) -> list[Found]:
        """The output for every question of a block, computed in batches of similar length.

        The longest come first: what does not fit into memory says so at once. A batch has at most ``tokens`` tokens,
        were it padded; a question that is longer is a batch by itself.
        """
        lengths = [self.length(question) for question in questions]
        order = sorted(range(len(questions)), key=lambda i: -lengths[i])  # stable: equal lengths keep their order
        found: dict[int, Found] = {}
        while order:
            count = max(1, tokens // lengths[order[0]])
            batch, order = order[:count], order[count:]
            found.update(zip(batch, self.compute([questions[i] for i in batch]), strict=True))
        return [found[i] for i in range(len(questions))]
