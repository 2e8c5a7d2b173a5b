"""The base classes of the scorers: questions become predictions, batch by batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, islice
from typing import ClassVar, Generic, TypeVar

import torch
from transformers import PreTrainedModel

from moslora.adapters import Families, describe_task
from moslora.base.engines import Engine, engine_of
from moslora.data.encode import EncodedText, Encoder, TokenPair
from moslora.evaluation.batches import block_size
from moslora.evaluation.server import Answering
from moslora.processes.devices import wait_for
from moslora.prompts.formats import Format
from moslora.prompts.protocols import Protocol
from moslora.runs.predictions import Prediction
from moslora.tasks import Example

Output = TypeVar("Output")


@dataclass(frozen=True)
class Question:
    """An example as tokens.

    Attributes:
        example: the question, or a text.
        texts: of each option its prompt with the tokens that are scored behind it; of an answer that is written the
            prompt alone.
    """

    example: Example
    texts: Sequence[EncodedText]

    @property
    def pairs(self) -> list[TokenPair]:
        """Prompts and answers."""
        return [(text.ids[: text.answer_start], text.ids[text.answer_start :]) for text in self.texts]

    @property
    def inputs(self) -> list[list[int]]:
        """The tokens that the model reads of each option: no last one, which is only predicted."""
        return [text.ids[:-1] for text in self.texts]

    @property
    def tokens(self) -> int:
        """Of the longest prompt with its answer."""
        return max(len(text.ids) for text in self.texts)

    @property
    def is_scored(self) -> bool:
        """Whether it has options or is a text, whose tokens are scored; others are answered by what is written."""
        return self.texts[0].answer_start < len(self.texts[0].ids)

    @property
    def truncated(self) -> bool:
        return any(text.truncated for text in self.texts)


@dataclass(frozen=True)
class Scorer(ABC, Generic[Output]):
    """What computes a protocol, with a model. Its output for a question is a number for each option, or a text."""

    protocol: ClassVar[Protocol]

    model: PreTrainedModel  # a causal language model on its device
    encoder: Encoder  # of its tokenizer
    format: Format  # of the prompts
    batch_tokens: int  # maximum number of tokens in a batch
    beams: int = 1  # of the search for a written text; 1 is greedy

    @property
    def block_size(self) -> int:
        """Questions computed together on the model's device."""
        return block_size(self.model.device, writes=self.protocol.writes)

    @cached_property
    def engine(self) -> Engine:
        """What computes the model."""
        return engine_of(self.model)

    @cached_property
    def _families(self) -> Families:
        return Families(self.model)

    @cached_property
    def _ahead(self) -> dict[str, Question]:
        return {}

    @abstractmethod
    def encode(self, example: Example) -> Question:
        """The question as tokens; fails if the protocol cannot score it."""

    def to_try(self, examples: Sequence[Example]) -> list[Example]:
        """The questions of one task that are encoded before anything is scored: if they can be, all others most likely
        can. Of each number of options, whose labels decide about ``choice``, it is the one with the longest text, which
        may leave no room for a prompt; and that with the shortest, which may leave nothing to predict."""
        by_length = sorted(examples, key=lambda example: max(map(len, (example.question, *example.choices))))
        longest = {len(example.choices): example for example in by_length}
        return [*longest.values(), by_length[0]]

    @abstractmethod
    def length(self, question: Question) -> int:
        """Tokens that the question takes of a batch."""

    @abstractmethod
    def compute(self, questions: Sequence[Question]) -> Callable[[], Iterable[Output]]:
        """Starts on a batch; the result reads the output for every question, once the device has been waited for."""

    @abstractmethod
    def ask(self, question: Question, served: Answering) -> Output:
        """The output for a question, of a server that computes it in place of the model."""

    @abstractmethod
    def read(self, question: Question, output: Output) -> Prediction:
        """The prediction in an output."""

    @torch.inference_mode()
    def score(
        self, examples: Sequence[Example], *, alone: bool = False, following: Sequence[Example] = ()
    ) -> list[Prediction]:
        """Predictions of one task's questions; their order and number decide the batches. ``alone``: each by itself.
        Those ``following``, which are asked next, are encoded while a GPU computes."""
        describe_task(self.model, None if examples[0].is_text else examples[0].task)
        ahead = self._ahead
        questions = [ahead.pop(one.id) if one.id in ahead else self.encode(one) for one in examples]
        with self._families.folded(self.model.dtype):
            outputs = self.in_batches(questions, tokens=1 if alone else self.batch_tokens)
        ahead.update((one.id, self.encode(one)) for one in following)
        return [self.read(*each) for each in zip(questions, outputs(), strict=True)]

    def in_batches(self, questions: Sequence[Question], *, tokens: int) -> Callable[[], list[Output]]:
        """Starts on a block, in batches of similar length; the result waits for the output for every question.

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

        def wait() -> list[Output]:
            wait_for(self.model.device)
            found: dict[int, Output] = {}
            for batch, read in started:
                found.update(zip(batch, read(), strict=True))
            return [found[i] for i in range(len(questions))]

        return wait


class OptionScorer(Scorer[list[float]]):
    """Of each option the log-probability of its answer's tokens behind its prompt:

    s_j = Σ_t log softmax(h(prompt_j, answer_j,<t) · Wᵀ)[answer_j,t]

    with h the last hidden state and W the output layer.
    """

    def encode_options(self, example: Example) -> list[EncodedText]:
        """The options with their prompts."""
        pairs = [(option.prompt, option.answer) for option in self.format.options(example)]
        return self.encoder.encode_all(pairs, joint=self.format.joint, eos=False)

    def rows(self, question: Question) -> list[list[int]]:
        """What the model reads: a row of each option, or one for all."""
        return question.inputs

    def families(self, questions: Sequence[Question]) -> list[list[list[int]]]:
        """The rows of a batch, those together whose common beginning is computed once."""
        return [self.rows(question) for question in questions]

    def compute(self, questions: Sequence[Question]) -> Callable[[], list[list[float]]]:
        batch = self.engine.lay(self.families(questions), self.model.device)
        paths = iter(batch.paths)
        places: list[int] = []  # of the tokens that a scored one follows
        targets: list[int] = []
        for question in questions:
            of_rows = cycle([next(paths) for _ in self.rows(question)])  # each option's own, or one for all
            for text, path in zip(question.texts, of_rows, strict=False):
                places += path[text.answer_start - 1 :]
                targets += text.ids[text.answer_start :]
        values = self.engine.log_p(batch, places, targets)
        values = values.to("cpu", non_blocking=True)  # not there yet when this returns: `read` is called later

        def read() -> list[list[float]]:
            counts = [len(answer) for question in questions for _, answer in question.pairs]
            sums = (float(of_answer.sum()) for of_answer in values.double().split(counts))
            return [list(islice(sums, len(question.texts))) for question in questions]

        return read

    def ask(self, question: Question, served: Answering) -> list[float]:
        return served.log_probabilities(question.pairs)
