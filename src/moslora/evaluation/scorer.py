"""The request, and the base class of the scorers: questions become predictions, batch by batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Generic, TypeVar

import torch
from transformers import PreTrainedModel

from moslora.adapters import Families, describe_task
from moslora.base.engines import Engine, engine_of
from moslora.choices import FormatName
from moslora.data.encode import Encoder
from moslora.evaluation.batches import BLOCK_SIZE, BLOCKS_ON_GPU, WRITTEN_BLOCK_SIZE
from moslora.evaluation.served import Pair, Served
from moslora.processes.devices import wait_for
from moslora.prompts.formats import Format
from moslora.prompts.protocols import DEFAULT_FORMAT, Protocol
from moslora.recipe import EvaluationSection, Recipe
from moslora.runs.predictions import Prediction
from moslora.tasks import Example

Question = TypeVar("Question")
Found = TypeVar("Found")


class Request(EvaluationSection):
    """A recipe's section `evaluation`, with the prompt format and the source of the questions."""

    format: FormatName = DEFAULT_FORMAT
    source: str = "wheel"

    @classmethod
    def of(cls, recipe: Recipe) -> "Request":
        """How a recipe's run is asked: in the format of its training rows."""
        asked = {"format": recipe.data.format, "source": recipe.questions.source}
        return cls(**recipe.evaluation.model_dump() | asked)


@dataclass(frozen=True)
class Scorer(ABC, Generic[Question, Found]):
    """What computes a protocol, with a model."""

    protocol: ClassVar[Protocol]

    model: PreTrainedModel  # a causal language model on its device
    encoder: Encoder  # of its tokenizer
    format: Format  # of the prompts
    batch_tokens: int  # maximum number of tokens in a batch
    beams: int = 1  # of the search for a written text; 1 is greedy

    cpu_block: ClassVar[int] = BLOCK_SIZE  # questions computed together on a CPU

    @property
    def block_size(self) -> int:
        """Questions computed together on the model's device."""
        if self.protocol.writes:
            return WRITTEN_BLOCK_SIZE
        if self.model.device.type == "cpu":
            return self.cpu_block
        return self.cpu_block * BLOCKS_ON_GPU

    @property
    def writing(self) -> dict[str, Any] | None:
        """The settings of a generated text; ``None`` of a protocol that generates none."""
        return None

    @cached_property
    def engine(self) -> Engine:
        """What computes the model."""
        return engine_of(self.model)

    @cached_property
    def _families(self) -> Families:
        return Families(self.model)

    @abstractmethod
    def encode(self, example: Example) -> Question:
        """The question as tokens; fails if the protocol cannot score it."""

    def to_try(self, examples: Sequence[Example]) -> list[Example]:
        """The questions of one task that are encoded before anything is scored: if they can be, all can. They are the
        first of each number of options, whose labels decide about ``choice``; `Cloze` adds those that may not fit."""
        first: dict[int, Example] = {}
        for example in examples:
            first.setdefault(len(example.choices), example)
        return list(first.values())

    @abstractmethod
    def length(self, question: Question) -> int:
        """Tokens that the question takes of a batch."""

    def work(self, example: Example) -> int:
        """Characters that the model reads, which tell about how long a question takes."""
        options = self.format.options(example)
        texts = {option.prompt for option in options} | {option.answer for option in options}
        return sum(len(text) for text in texts)

    @abstractmethod
    def pairs(self, question: Question) -> list[Pair]:
        """Of each option the tokens that are read and those that are scored; of a text that is written, its prompt and
        nothing."""

    @abstractmethod
    def ask(self, question: Question, served: Served) -> Found:
        """The output for a question, of a server that computes it in place of the model."""

    @abstractmethod
    def read(self, example: Example, question: Question, found: Found) -> Prediction:
        """The prediction in that output."""

    @cached_property
    def _ahead(self) -> dict[str, Question]:
        return {}

    @torch.inference_mode()
    def score(
        self, examples: Sequence[Example], *, alone: bool = False, following: Sequence[Example] = ()
    ) -> list[Prediction]:
        """Predictions of one task's questions; their order and number decide the batches. ``alone``: each by itself.
        Those ``following``, which are asked next, are encoded while a GPU computes."""
        task = None  # of texts
        if not examples[0].is_text:
            task = examples[0].task
        describe_task(self.model, task)
        questions = [self._ahead.pop(example.id, None) or self.encode(example) for example in examples]
        tokens = self.batch_tokens
        if alone:
            tokens = 1
        with self._families.folded(self.model.dtype):
            found = self.in_batches(questions, tokens=tokens)
        self._ahead.update((example.id, self.encode(example)) for example in following)
        return [self.read(*each) for each in zip(examples, questions, found(), strict=True)]

    @abstractmethod
    def in_batches(self, questions: Sequence[Question], *, tokens: int) -> Callable[[], list[Found]]:
        """Starts on a block, with passes of at most ``tokens`` tokens; the result waits for the output for every
        question."""


@dataclass(frozen=True)
class Batched(Scorer[Question, Found]):
    """A scorer that computes a block in batches, each by itself."""

    @abstractmethod
    def compute(self, questions: Sequence[Question]) -> Callable[[], Iterable[Found]]:
        """Starts on a batch; the result reads the output for every question, once the device has been waited for."""

    def in_batches(self, questions: Sequence[Question], *, tokens: int) -> Callable[[], list[Found]]:
        """Starts on a block, in batches of similar length.

        The longest come first: what does not fit into memory says so at once. A batch has at most ``tokens`` tokens,
        were it padded; a question that is longer is a batch by itself.
        """
        lengths = [self.length(question) for question in questions]
        order = sorted(range(len(questions)), key=lambda i: -lengths[i])  # stable: equal lengths keep their order
        started = []
        first = 0
        while first < len(order):
            count = max(1, tokens // lengths[order[first]])
            batch = order[first : first + count]
            started.append((batch, self.compute([questions[i] for i in batch])))
            first += count

        def wait() -> list[Found]:
            wait_for(self.model.device)
            found: dict[int, Found] = {}
            for batch, read in started:
                found.update(zip(batch, read(), strict=True))
            return [found[i] for i in range(len(questions))]

        return wait
