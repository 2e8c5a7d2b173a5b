"""LLM-Adapters' procedure (arXiv 2304.01933, ``commonsense_evaluate.py``): generate an answer, search it.

The model continues the prompt by at most 32 tokens, by beam search or greedily; the first match of the task's
regular expression behind "### Response:" is its answer, and no match is wrong. Greedy generation
(`moslora.base.decoding`) ends where the answer cannot change any more. Several questions at a time never change
each other's answer, as they do in the official script, which pads with token 0 and no mask. Beams are transformers'
own, over questions that are padded on the left, masked, and keep their positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from moslora.base.engines import generate
from moslora.data.encode import EncodedText, Encoder
from moslora.errors import UsageError
from moslora.evaluation.scorer import Batched
from moslora.evaluation.served import Pair, Served
from moslora.prompts.instructions import answer_pattern, labels
from moslora.prompts.protocols import PROTOCOLS, Protocol
from moslora.runs.predictions import Prediction
from moslora.tasks import Example

MAX_NEW_TOKENS = PROTOCOLS["generate"].room
FEWEST_PROMPT_TOKENS = 2
"""BOS, and one token of the question."""

RESPONSE_HEADER = "### Response:"

WRITING = {
    "max_new_tokens": MAX_NEW_TOKENS,
    "do_sample": False,
    "use_cache": True,
    "early_stopping": False,
    "length_penalty": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "num_return_sequences": 1,
}
"""Arguments of `GenerationConfig`, beside the number of beams and the tokens of the end and of padding. All others stay
unset, also those that a later version of transformers adds."""

Question = tuple[Example, EncodedText]


@dataclass(frozen=True)
class Generate(Batched[Question, str]):
    """The protocol ``generate``. ``beams`` = 1 is greedy."""

    protocol: ClassVar[Protocol] = PROTOCOLS["generate"]

    @property
    def writing(self) -> dict[str, Any]:
        """The settings of the generated text. The token that ends it is the tokenizer's, whose hash is recorded."""
        return {**WRITING, "num_beams": self.beams}

    def encode(self, example: Example) -> Question:
        refuse_no_room(self.encoder, MAX_NEW_TOKENS, "protocol generate")
        prompt = self.format.generation_prompt(example)
        return example, self.encoder.encode(prompt, "", eos=False, room=MAX_NEW_TOKENS)

    def length(self, question: Question) -> int:
        return self.beams * (len(question[1].ids) + MAX_NEW_TOKENS)

    def pairs(self, question: Question) -> list[Pair]:
        return [(question[1].ids, [])]

    def ask(self, question: Question, served: Served) -> str:
        return served.write(question[1].ids, max_tokens=MAX_NEW_TOKENS).content

    def read(self, example: Example, question: Question, found: str) -> Prediction:
        _, prompt = question
        return read_text(example, found, truncated=prompt.truncated)

    def in_batches(self, questions: Sequence[Question], *, tokens: int) -> Callable[[], list[str]]:
        """The texts after the prompts; written greedily all together, since a row that ends makes room for another."""
        if self.beams > 1:
            return super().in_batches(questions, tokens=tokens)
        tokenizer = self.encoder.tokenizer

        def ended(row: int, written: list[int]) -> bool:
            example, _ = questions[row]
            text = str(tokenizer.decode(written, skip_special_tokens=True))
            return is_decided(text, example)

        rows = self.engine.write(
            [prompt.ids for _, prompt in questions],
            max_new_tokens=MAX_NEW_TOKENS,
            ended=ended,
            ends=[tokenizer.eos_token_id],
            batch_tokens=tokens,
        )
        return partial(tokenizer.batch_decode, rows, skip_special_tokens=True)

    def compute(self, questions: Sequence[Question]) -> Callable[[], list[str]]:
        """The texts after the prompts, by beam search."""
        tokenizer = self.encoder.tokenizer
        settings = {**self.writing, "eos_token_id": tokenizer.eos_token_id}
        written = generate(self.engine.model, [prompt.ids for _, prompt in questions], settings)
        texts = list(tokenizer.batch_decode(written, skip_special_tokens=True))
        return lambda: texts


def refuse_no_room(encoder: Encoder, new_tokens: int, what: str) -> None:
    """Refuses a limit that leaves no room for a question beside the text that is written."""
    least = new_tokens + FEWEST_PROMPT_TOKENS
    if encoder.max_length is not None and encoder.max_length < least:
        raise UsageError(
            f"evaluation.max_length = {encoder.max_length}: {what} writes up to {new_tokens} tokens, which leaves no"
            f" room for a question; must be at least {least}"
        )


def read_text(example: Example, text: str, *, truncated: bool) -> Prediction:
    """The prediction in a text that was written as the answer to a question."""
    answer = find_answer(text, example)
    names = labels(example)
    named = None
    if answer in names:
        named = names.index(answer)
    return Prediction(example.id, example.task, example.gold, named, text=text, answer=answer, truncated=truncated)


def find_answer(text: str, example: Example) -> str:
    """The first label in a continuation, "" if there is none. A second response header ends the response."""
    response, *_ = text.split(RESPONSE_HEADER)
    hit = answer_pattern(example).search(response)
    if hit is None:
        return ""
    return hit.group()


def is_decided(text: str, example: Example) -> bool:
    """Whether more text leaves the answer as it is: "answer1" at the end may become "answer10"."""
    if RESPONSE_HEADER in text:
        return True
    answer = find_answer(text, example)
    if not answer:
        return False
    rest = text[text.find(answer) :]
    return not any(label != answer and label.startswith(rest) for label in labels(example))
