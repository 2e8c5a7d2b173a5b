"""Open-ended questions, answered in words, whatever the protocol: the model writes, and its text is matched.

Greedy decoding, up to an end token (`end_tokens`), the first of the task's stop texts, or ``max_new_tokens``. What is
read from the text, and when it is right, says the task's `moslora.tasks.matching.Match`; the metric is lm-eval's
``exact_match`` of ``generate_until``. A question too long for the context loses its start, so that the text fits
behind it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.evaluation.generate import refuse_no_room
from moslora.evaluation.scorer import Scorer
from moslora.evaluation.served import Pair, Served
from moslora.prompts.protocols import PROTOCOLS, Protocol
from moslora.runs.predictions import Prediction
from moslora.tasks import Example, OpenEnded

BYTES_OF_A_CHARACTER = 4
"""At most, in UTF-8; a token has at least one of them."""


class Question(NamedTuple):
    prompt: list[int]  # that the model reads
    words: OpenEnded  # how it is answered
    truncated: bool


@dataclass(frozen=True)
class OpenAnswers(Scorer[Question, str]):
    """The scorer of open-ended questions."""

    protocol: ClassVar[Protocol] = PROTOCOLS["generate"]

    def encode(self, example: Example) -> Question:
        words = _words(example)
        refuse_no_room(self.encoder, words.max_new_tokens, f"tasks.{example.task}.max_new_tokens")
        prompt = self.format.generation_prompt(example)
        text = self.encoder.encode(prompt, "", eos=False, room=words.max_new_tokens)
        return Question(text.ids, words, text.truncated)

    def to_try(self, examples: Sequence[Example]) -> list[Example]:
        return list(examples[:1])

    def length(self, question: Question) -> int:
        return len(question.prompt) + question.words.max_new_tokens

    def work(self, example: Example) -> int:
        written = _words(example).max_new_tokens * BYTES_OF_A_CHARACTER
        return len(self.format.generation_prompt(example)) + written

    def in_batches(self, questions: Sequence[Question], *, tokens: int) -> Callable[[], list[str]]:
        """The texts before a stop; written all together, since a row that ends makes room for another."""
        tokenizer = self.encoder.tokenizer
        words = questions[0].words  # those of one task
        written = self.engine.write(
            [question.prompt for question in questions],
            max_new_tokens=words.max_new_tokens,
            ended=lambda _, tokens: completes(tokenizer, words.stop, tokens),
            ends=end_tokens(self.model, tokenizer),
            batch_tokens=tokens,
        )
        texts = tokenizer.batch_decode(written, skip_special_tokens=True)
        return lambda: [words.before_stop(text) for text in texts]

    def pairs(self, question: Question) -> list[Pair]:
        return [(question.prompt, [])]

    def ask(self, question: Question, served: Served) -> str:
        words = question.words
        return words.before_stop(served.write(question.prompt, max_tokens=words.max_new_tokens).content)

    def read(self, example: Example, question: Question, found: str) -> Prediction:
        match = question.words.match
        answer = match.read(found)
        position = match.position(answer, example.choices)
        return Prediction(
            example.id,
            example.task,
            gold=None,
            prediction=position,
            text=found,
            answer=answer,
            truncated=question.truncated,
        )


def _words(example: Example) -> OpenEnded:
    assert isinstance(example.wording, OpenEnded), f"{example.id}: has options"
    return example.wording


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end a text: the tokenizer's end-of-sequence token, and those special tokens that the model's own
    generation settings name, such as the end of a turn of a chat, which several tokenizers have beside it."""
    named = getattr(model.generation_config, "eos_token_id", None) or []
    if isinstance(named, int):
        named = [named]
    added = tokenizer.added_tokens_decoder
    special = {token for token in named if token in added and added[token].special}  # a default may be any word
    return frozenset(special | {tokenizer.eos_token_id} - {None})


def completes(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], tokens: list[int]) -> bool:
    """Whether the newest of these ``tokens`` completes one of the texts that end a written one. Only as many of the
    last ones are decoded as may hold it."""
    if not texts:
        return False
    longest = max(len(text.encode()) for text in texts)
    tail = tokenizer.decode(tokens[-longest - BYTES_OF_A_CHARACTER :], skip_special_tokens=True)
    return any(text in tail for text in texts)
