"""The base classes of the scorers: they encode questions for a model, and read its outputs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from moslora.data.encode import EncodedText, Encoder, TokenPair
from moslora.evaluation.model import Local, Model, Wait
from moslora.evaluation.server import Refused
from moslora.prompts.formats import Format
from moslora.prompts.protocols import Protocol
from moslora.runs.predictions import Prediction
from moslora.tasks import Example

Output = TypeVar("Output")


@dataclass(frozen=True)
class EncodedQuestion:
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
    def tokens(self) -> int:
        """Of the longest prompt with its answer."""
        return max(len(text.ids) for text in self.texts)

    @property
    def truncated(self) -> bool:
        return any(text.truncated for text in self.texts)


@dataclass(frozen=True)
class Scorer(ABC, Generic[Output]):
    """How a protocol asks a model. Its output for a question is a number for each option, or a text."""

    protocol: ClassVar[Protocol]

    encoder: Encoder
    format: Format  # of the prompts
    beams: int = 1  # of the search for a written text; 1 is greedy

    @abstractmethod
    def encode(self, example: Example) -> EncodedQuestion:
        """The question as tokens; fails if the protocol cannot score it."""

    def to_try(self, examples: Sequence[Example]) -> list[Example]:
        """The questions of one task that are encoded before anything is scored: if they can be, all others most likely
        can. Of each number of options, whose labels decide about ``choice``, it is the one with the longest text, which
        may leave no room for a prompt; and that with the shortest, which may leave nothing to predict."""
        by_length = sorted(examples, key=lambda example: max(map(len, (example.question, *example.choices))))
        longest = {len(example.choices): example for example in by_length}
        return [*longest.values(), by_length[0]]

    @abstractmethod
    def length(self, question: EncodedQuestion, model: Local) -> int:
        """Tokens that the question takes of a batch."""

    @abstractmethod
    def ask(self, questions: Sequence[EncodedQuestion], model: Model) -> Wait[Output]:
        """Ask a model questions of one task, none of them if there are none: the result waits for the outputs."""

    @abstractmethod
    def read(self, question: EncodedQuestion, output: Output) -> Prediction:
        """The prediction in an output."""

    def start(self, examples: Sequence[Example], model: Model) -> Callable[[], Iterator[list[Prediction]]]:
        """Ask questions of one task: the result waits for their predictions, and yields them as they come."""
        questions = [self.encode(example) for example in examples]
        wait = self.ask(questions, model)

        def predictions() -> Iterator[list[Prediction]]:
            for outputs in wait():
                yield [self._prediction(questions[place], output) for place, output in outputs.items()]

        return predictions

    def _prediction(self, question: EncodedQuestion, output: Output | Refused) -> Prediction:
        if not isinstance(output, Refused):
            return self.read(question, output)
        example = question.example
        return Prediction(example.id, example.task, example.gold, prediction=None, refused=str(output))

    def score(self, examples: Sequence[Example], model: Model) -> list[Prediction]:
        """Predictions of one task's questions, in the order in which they come."""
        return [prediction for predictions in self.start(examples, model)() for prediction in predictions]


class OptionScorer(Scorer[list[float]]):
    """Scores each option by the log-probability of its answer's tokens behind its prompt."""

    one_prompt: ClassVar[bool] = False
    """Whether a question's options have one prompt, and those of all questions begin alike."""

    def encode_options(self, example: Example) -> list[EncodedText]:
        """The options with their prompts."""
        pairs = [(option.prompt, option.answer) for option in self.format.options(example)]
        return self.encoder.encode_all(pairs, joint=self.format.joint, eos=False)

    def length(self, question: EncodedQuestion, model: Local) -> int:
        return model.length(question.pairs, one_prompt=self.one_prompt)

    def ask(self, questions: Sequence[EncodedQuestion], model: Model) -> Wait[list[float]]:
        pairs = [question.pairs for question in questions]
        return model.log_probabilities(pairs, task=task_of(questions), one_prompt=self.one_prompt)


def task_of(questions: Sequence[EncodedQuestion]) -> str | None:
    """The task by which adapters are chosen; ``None`` of texts, and without questions."""
    tasks = [question.example.task for question in questions[:1] if not question.example.is_text]
    return tasks[0] if tasks else None
