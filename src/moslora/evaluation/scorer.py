"""Scorers: they encode questions for a model, and read its outputs. Here are the base class and those of options.

``choice`` compares labels by their one differing token, at one forward pass a question. With p the prompt and the
tokens that all labels begin with, and o_j the token in which label j differs,

    score_j = log softmax_j(log p(o_j | p))

which is what comparing the labels' full log-probabilities comes to, because they share every other term.

``cloze`` compares the texts of all options behind the question by their log-probabilities: lm-eval's multiple choice.
The best score is lm-eval's ``acc``, the best score per character its ``acc_norm``. Prompts may differ between options
(WinoGrande, partial scoring: the option ends the prompt, the rest of the sentence is the answer).

Texts are measured whatever the protocol, each by itself, to see how much a model has forgotten:

    nats(t) = − Σᵢ log softmax(h(t_<i) · Wᵀ)[tᵢ]

over the tokens of a text, per byte of UTF-8, so that models with different tokenizers compare. BOS is the context of
the first token if the tokenizer adds one; otherwise the first token is context alone, and its bytes do not count. A
text longer than ``evaluation.max_length`` loses its end.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Generic, TypeVar

from moslora.data.encode import EncodedText, Encoder, TokenPair
from moslora.errors import MosloraError, UsageError
from moslora.evaluation.model import Local, Model, Wait
from moslora.evaluation.server import Refused
from moslora.kernels.rows import common_prefix
from moslora.prompts.formats import Format
from moslora.prompts.protocols import PROTOCOLS, Protocol
from moslora.runs.outcomes import log_softmax
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


class Choice(OptionScorer):
    """The protocol ``choice``. An option's prompt ends before its one token that differs."""

    protocol: ClassVar[Protocol] = PROTOCOLS["choice"]
    one_prompt = True

    def encode(self, example: Example) -> EncodedQuestion:
        texts = self.encode_options(example)
        ids = [text.ids for text in texts]
        common = common_prefix(ids)
        ends = {tuple(row[common:]) for row in ids}
        if common == 0 or len(ends) < len(ids) or any(len(end) != 1 for end in ends):
            raise MosloraError(
                f"task {example.task}, format {self.format.name}, {len(ids)} options: protocol choice needs options"
                " that differ only in their last token; use evaluation.protocol=cloze or generate"
            )
        return EncodedQuestion(example, [replace(text, answer_start=common) for text in texts])

    def read(self, question: EncodedQuestion, output: list[float]) -> Prediction:
        return Prediction.of(question.example, log_softmax(output), truncated=question.truncated)


class Cloze(OptionScorer):
    """The protocol ``cloze``; a question has one text per option."""

    protocol: ClassVar[Protocol] = PROTOCOLS["cloze"]

    def encode(self, example: Example) -> EncodedQuestion:
        question = EncodedQuestion(example, self.encode_options(example))
        if any(text.answer_start == 0 for text in question.texts):
            raise MosloraError(
                f"{example.id}: an option of {question.tokens} tokens leaves no room for the prompt; use a larger"
                " evaluation.max_length"
            )
        return question

    def read(self, question: EncodedQuestion, output: list[float]) -> Prediction:
        characters = tuple(option.characters for option in self.format.options(question.example))
        return Prediction.of(question.example, output, characters=characters, truncated=question.truncated)


class Texts(Cloze):
    """The scorer of texts, which are the only option of an empty prompt."""

    def encode(self, example: Example) -> EncodedQuestion:
        text = self.encoder.encode_text(example.choices[0])
        if not text.bytes:
            raise UsageError(
                f"{example.id} ({example.choices[0][:40]!r}): this text is too short: after one token or"
                " character of context nothing is left to predict; remove it, or raise evaluation.max_length"
            )
        return EncodedQuestion(example, [text])

    def read(self, question: EncodedQuestion, output: list[float]) -> Prediction:
        prediction = Prediction.of(question.example, output, truncated=question.truncated)
        return replace(prediction, bytes=question.texts[0].bytes)


def task_of(questions: Sequence[EncodedQuestion]) -> str | None:
    """The task by which adapters are chosen; ``None`` of texts, and without questions."""
    tasks = [question.example.task for question in questions[:1] if not question.example.is_text]
    return tasks[0] if tasks else None
