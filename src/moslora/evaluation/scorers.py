"""Scorers encode questions for a model, and read its outputs. A protocol has one scorer; texts and open-ended questions
have their own, whatever the protocol. How a model computes, or a server is asked, is in `moslora.evaluation.model`.

``choice`` compares labels by their one differing token, at one forward pass a question. With p the prompt and the
tokens that all labels begin with, and o_j the token in which label j differs,

    score_j = log softmax_j(log p(o_j | p))

which equals the comparison of the labels' full log-probabilities, because these share every other term.

``cloze`` compares the texts of all options behind the question by their log-probabilities: lm-eval's multiple choice.
The best score is lm-eval's ``acc``, the best score per character its ``acc_norm``. Prompts may differ between options
(WinoGrande, partial scoring: the option ends the prompt, the rest of the sentence is the answer).

``generate`` is LLM-Adapters' procedure (arXiv 2304.01933, ``commonsense_evaluate.py``): the model continues the prompt
by at most 32 tokens, by beam search or greedily. The first match of the task's regular expression behind
"### Response:" is its answer, and no match is wrong. Greedy generation (`moslora.base.decoding`) ends where the answer
cannot change any more. Questions in one batch never change each other's answers, as they do in the official script,
which pads with token 0 and no mask. Beams are transformers' own, over questions that are padded on the left and masked.

Open-ended questions are answered by greedy decoding up to an end token, the first of the task's stop texts, or
``max_new_tokens``. The task's `moslora.tasks.matching.Match` reads the answer from the text; the metric is lm-eval's
``exact_match`` of ``generate_until``. A question too long for the context loses its start.

Texts are measured each by itself, to see how much a model has forgotten:

    nats(t) = − Σᵢ log softmax(h(t_<i) · Wᵀ)[tᵢ]

over the tokens of a text, per byte of UTF-8, so that models with different tokenizers compare. BOS is the context of
the first token if the tokenizer adds one; otherwise the first token is context alone, and its bytes do not count. A
text longer than ``evaluation.max_length`` loses its end.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Generic, TypeVar

from transformers import PretrainedConfig
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.base.shapes import context_length
from moslora.data.encode import EncodedText, Encoder, TokenPair
from moslora.errors import MosloraError, UsageError
from moslora.evaluation.model import Local, Model, Wait, Writing
from moslora.evaluation.request import Request
from moslora.evaluation.server import Refused
from moslora.kernels.rows import common_prefix
from moslora.prompts.formats import Format, make_format
from moslora.prompts.instructions import answer_pattern, labels
from moslora.prompts.protocols import PROTOCOLS, Protocol, ProtocolName
from moslora.runs.outcomes import log_softmax
from moslora.runs.predictions import Prediction
from moslora.tasks import Example, OpenEnded

FEWEST_PROMPT_TOKENS = 2
"""Smallest number of tokens of a prompt: BOS, and one token of the question."""

RESPONSE_HEADER = "### Response:"
"""Line before the answer in LLM-Adapters' prompt."""

WRITING = {
    "max_new_tokens": PROTOCOLS["generate"].room,
    "do_sample": False,
    "use_cache": True,
    "early_stopping": False,
    "length_penalty": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "num_return_sequences": 1,
}
"""Arguments of transformers' `GenerationConfig` for beam search, except the number of beams and the end tokens. All
other arguments stay unset."""

BYTES_OF_A_CHARACTER = 4
"""Largest number of bytes of a character in UTF-8. A token has at least one byte."""

PART_OF_A_CHARACTER = "\ufffd"
"""Replacement character, to which a tokenizer decodes bytes that are no whole character."""

SPACE = "\u2581"
"""SentencePiece's sign for a space, which its decoder drops at the beginning of a text."""

Output = TypeVar("Output")


@dataclass(frozen=True)
class EncodedQuestion:
    """An example as tokens.

    Attributes:
        example: a question, or a text that is scored whole.
        texts: for each option, prompt and answer; the prompt alone if the model writes the answer; or the text itself.
    """

    example: Example
    texts: Sequence[EncodedText]

    @property
    def pairs(self) -> list[TokenPair]:
        """Prompt and answer of each text, as tokens."""
        return [(text.ids[: text.answer_start], text.ids[text.answer_start :]) for text in self.texts]

    @property
    def tokens(self) -> int:
        """Number of tokens of the longest prompt with its answer."""
        return max(len(text.ids) for text in self.texts)

    @property
    def truncated(self) -> bool:
        """Whether a prompt was cut."""
        return any(text.truncated for text in self.texts)


@dataclass(frozen=True)
class Scorer(ABC, Generic[Output]):
    """Base class of scorers. A model's output for a question is a number for each option, or a text.

    Attributes:
        encoder: encoder of the questions.
        format: format of the prompts.
        beams: number of beams for texts that are written; 1 is greedy decoding.
    """

    protocol: ClassVar[Protocol]

    encoder: Encoder
    format: Format
    beams: int = 1

    @abstractmethod
    def encode(self, example: Example) -> EncodedQuestion:
        """Encode a question.

        Raises:
            MosloraError: the protocol cannot score the question.
        """

    @abstractmethod
    def length(self, question: EncodedQuestion, model: Local) -> int:
        """Number of a batch's tokens that a question takes."""

    @abstractmethod
    def ask(self, questions: Sequence[EncodedQuestion], model: Model) -> Wait[Output]:
        """Start to ask a model ``questions`` of one task, or no questions; return a function that waits for the
        outputs."""

    @abstractmethod
    def read(self, question: EncodedQuestion, output: Output) -> Prediction:
        """Read the prediction from a model's output."""

    def start(self, questions: Sequence[EncodedQuestion], model: Model) -> Callable[[], Iterator[list[Prediction]]]:
        """Start to ask questions of one task, and return a function that yields their predictions as they arrive."""
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
        """Return the predictions of one task's questions, in the order in which the model makes them."""
        questions = [self.encode(example) for example in examples]
        return [prediction for predictions in self.start(questions, model)() for prediction in predictions]


class OptionScorer(Scorer[list[float]]):
    """Scorer of options: the log-probability of each option's answer tokens, given its prompt."""

    one_prompt: ClassVar[bool] = False
    """Whether all options of a question have the same prompt, and the prompts of all questions begin alike."""

    def encode_options(self, example: Example) -> list[EncodedText]:
        """Encode the options with their prompts."""
        pairs = [(option.prompt, option.answer) for option in self.format.options(example)]
        return self.encoder.encode_all(pairs, joint=self.format.joint, eos=False)

    def length(self, question: EncodedQuestion, model: Local) -> int:
        return model.length(question.pairs, one_prompt=self.one_prompt)

    def ask(self, questions: Sequence[EncodedQuestion], model: Model) -> Wait[list[float]]:
        pairs = [question.pairs for question in questions]
        return model.log_probabilities(pairs, task=task_of(questions), one_prompt=self.one_prompt)


class Choice(OptionScorer):
    """Scorer of the protocol ``choice``. The prompt ends before the one token in which the options differ."""

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
    """Scorer of the protocol ``cloze``, with one text per option."""

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
    """Scorer of texts. A text is the only option, behind an empty prompt."""

    def encode(self, example: Example) -> EncodedQuestion:
        text = self.encoder.encode_text(example.choices[0])
        if not text.bytes:
            raise UsageError(
                f"{example.id} ({example.choices[0][:40]!r}): nothing of this text is left to predict after"
                " its first token or character; remove it, or raise evaluation.max_length if that cut it"
            )
        return EncodedQuestion(example, [text])

    def read(self, question: EncodedQuestion, output: list[float]) -> Prediction:
        prediction = Prediction.of(question.example, output, truncated=question.truncated)
        return replace(prediction, bytes=question.texts[0].bytes)


class Generate(Scorer[str]):
    """Scorer of the protocol ``generate``: the model writes an answer, up to an end token or the largest length."""

    protocol: ClassVar[Protocol] = PROTOCOLS["generate"]

    def room(self, example: Example) -> int:
        """Maximum number of tokens of an answer."""
        return self.protocol.room

    def ends(self, model: Model) -> Collection[int]:
        """Tokens that end an answer."""
        return [self.encoder.tokenizer.eos_token_id]

    def is_ended(self, example: Example, tokens: list[int]) -> bool:
        """Whether no further tokens can change the answer in these ``tokens``."""
        return is_decided(str(self.encoder.tokenizer.decode(tokens, skip_special_tokens=True)), example)

    def encode(self, example: Example) -> EncodedQuestion:
        room = self.room(example)
        least = room + FEWEST_PROMPT_TOKENS
        if self.encoder.max_length is not None and self.encoder.max_length < least:
            raise UsageError(
                f"evaluation.max_length = {self.encoder.max_length}: answers of {example.task} have up to {room}"
                f" tokens, which leaves no room for a question; must be at least {least}"
            )
        prompt = self.format.generation_prompt(example)
        return EncodedQuestion(example, [self.encoder.encode(prompt, "", eos=False, room=room)])

    def length(self, question: EncodedQuestion, model: Local) -> int:
        return self.beams * (question.tokens + self.room(question.example))

    def ask(self, questions: Sequence[EncodedQuestion], model: Model) -> Wait[str]:
        examples = [question.example for question in questions]
        search = None
        if self.beams > 1:
            search = {**WRITING, "num_beams": self.beams, "eos_token_id": self.encoder.tokenizer.eos_token_id}
        how = Writing(
            max_new_tokens=self.room(examples[0]) if examples else 1,
            ended=lambda place, tokens: self.is_ended(examples[place], tokens),
            ends=self.ends(model),
            search=search,
        )
        return model.write([question.texts[0].ids for question in questions], how, task=task_of(questions))

    def read(self, question: EncodedQuestion, output: str) -> Prediction:
        example = question.example
        answer = find_answer(output, example)
        names = labels(example)
        named = names.index(answer) if answer in names else None
        return Prediction(
            example.id, example.task, example.gold, named, text=output, answer=answer, truncated=question.truncated
        )


class OpenAnswers(Generate):
    """Scorer of open-ended questions."""

    def room(self, example: Example) -> int:
        return _words(example).max_new_tokens

    def ends(self, model: Model) -> Collection[int]:
        """The tokenizer's end-of-sequence token, and the special tokens among the model's own end tokens, such as the
        end of a chat's turn."""
        tokenizer = self.encoder.tokenizer
        added = tokenizer.added_tokens_decoder
        # A model's default end token may be an ordinary word.
        special = {token for token in model.named_ends if token in added and added[token].special}
        return special | {tokenizer.eos_token_id} - {None}

    def is_ended(self, example: Example, tokens: list[int]) -> bool:
        """Whether the last of these ``tokens`` completes one of the task's stop texts. Only the last tokens that may
        hold a stop text are decoded, and none if the last token lacks the last character of every stop text."""
        stop = _words(example).stop
        if not self._may_complete(tokens[-1], "".join(text[-1] for text in stop)):
            return False
        longest = max((len(text.encode()) for text in stop), default=0)
        newest = tokens[-longest - BYTES_OF_A_CHARACTER :]
        tail = self.encoder.tokenizer.decode(newest, skip_special_tokens=True)
        return any(text in tail for text in stop)

    @cached_property
    def _texts(self) -> dict[int, str]:
        return {}

    def _may_complete(self, token: int, last: str) -> bool:
        """Whether a token's text contains one of the characters ``last``, or a part of a character."""
        if token not in self._texts:
            tokenizer = self.encoder.tokenizer
            piece = str(tokenizer.convert_ids_to_tokens(token)).replace(SPACE, " ")
            self._texts[token] = f"{tokenizer.decode([token])}{piece}"
        text = self._texts[token]
        return PART_OF_A_CHARACTER in text or any(character in text for character in last)

    def read(self, question: EncodedQuestion, output: str) -> Prediction:
        example = question.example
        words = _words(example)
        text = words.before_stop(output)
        answer = words.match.read(text)
        accepted = words.match.position(answer, example.choices)
        return Prediction(
            example.id, example.task, None, accepted, text=text, answer=answer, truncated=question.truncated
        )


SCORERS: Mapping[ProtocolName, type[Scorer[Any]]] = {
    scorer.protocol.name: scorer for scorer in (Choice, Cloze, Generate)
}
"""Scorer of each protocol."""


def make_encoder(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, request: Request) -> Encoder:
    """Return an encoder of questions, up to the request's limit in tokens or else the model's context.

    Raises:
        UsageError: the limit exceeds the context.
    """
    context = context_length(config)
    if request.max_length and context and request.max_length > context:
        raise UsageError(
            f"evaluation.max_length = {request.max_length}: the model's context has {context:,} tokens; set at most"
            " this, or null"
        )
    # A recipe's `data.max_length` limits training rows alone.
    return Encoder(tokenizer, max_length=request.max_length or context, key="evaluation.max_length")


def make_scorer(example: Example, encoder: Encoder, request: Request) -> Scorer[Any]:
    """Return the scorer of an example's task. Texts and open-ended questions have their own scorers, whatever the
    protocol of ``request``."""
    format = make_format(request.format, encoder.tokenizer)
    if example.is_text:
        return Texts(encoder, format)
    if example.is_open_ended:
        return OpenAnswers(encoder, format)
    return SCORERS[request.protocol](encoder, format, beams=request.beams)


def task_of(questions: Sequence[EncodedQuestion]) -> str | None:
    """Name of the task by which gates choose; ``None`` for texts, and without questions."""
    tasks = [question.example.task for question in questions[:1] if not question.example.is_text]
    return tasks[0] if tasks else None


def find_answer(text: str, example: Example) -> str:
    """Find the first label in a response, which a second response header ends; "" if there is none."""
    response, *_ = text.split(RESPONSE_HEADER)
    hit = answer_pattern(example).search(response)
    if hit is None:
        return ""
    return hit.group()


def is_decided(text: str, example: Example) -> bool:
    """Whether further text cannot change the answer. "answer1" at the end may still become "answer10"."""
    if RESPONSE_HEADER in text:
        return True
    answer = find_answer(text, example)
    if not answer:
        return False
    rest = text[text.find(answer) :]
    return not any(label != answer and label.startswith(rest) for label in labels(example))


def _words(example: Example) -> OpenEnded:
    """Prompt of an open-ended question, and how its answers are matched."""
    assert isinstance(example.wording, OpenEnded), f"{example.id}: has options"
    return example.wording
