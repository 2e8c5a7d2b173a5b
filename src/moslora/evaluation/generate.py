"""LLM-Adapters' procedure (arXiv 2304.01933, ``commonsense_evaluate.py``): generate an answer, search it.

The model continues the prompt by at most 32 tokens, by beam search or greedily; the first match of the task's
regular expression behind "### Response:" is its answer, and no match is wrong. Greedy generation
(`moslora.base.decoding`) ends where the answer cannot change any more. Several questions at a time never change
each other's answer, as they do in the official script, which pads with token 0 and no mask. Beams are transformers'
own, over questions that are padded on the left, masked, and keep their positions.

Open-ended questions are answered in words, whatever the protocol: the model writes, and its text is matched. Greedy
decoding, up to an end token, the first of the task's stop texts, or ``max_new_tokens``. What is read from the text,
and when it is right, says the task's `moslora.tasks.matching.Match`; the metric is lm-eval's ``exact_match`` of
``generate_until``. A question too long for the context loses its start, so that the text fits behind it.
"""

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import ClassVar

from moslora.errors import UsageError
from moslora.evaluation.model import Local, Model, Wait, Writing
from moslora.evaluation.scorer import EncodedQuestion, Scorer, task_of
from moslora.prompts.instructions import answer_pattern, labels
from moslora.prompts.protocols import PROTOCOLS, Protocol
from moslora.runs.predictions import Prediction
from moslora.tasks import Example, OpenEnded

FEWEST_PROMPT_TOKENS = 2
"""BOS, and one token of the question."""

RESPONSE_HEADER = "### Response:"

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
"""Arguments of `GenerationConfig`, beside the number of beams and the tokens of the end and of padding. All others stay
unset, also those that a later version of transformers adds."""

BYTES_OF_A_CHARACTER = 4
"""At most, in UTF-8; a token has at least one of them."""

PART_OF_A_CHARACTER = "\ufffd"
"""How a tokenizer decodes bytes that are no whole character."""

SPACE = "\u2581"
"""How SentencePiece writes a space, which it may leave out where a text begins."""


class Generate(Scorer[str]):
    """The protocol ``generate``: the model writes an answer, up to a token that ends it, or as many tokens as there is
    room for. ``beams`` = 1 is greedy."""

    protocol: ClassVar[Protocol] = PROTOCOLS["generate"]

    def room(self, example: Example) -> int:
        """Maximum number of tokens of an answer."""
        return self.protocol.room

    def ends(self, model: Model) -> Collection[int]:
        """The tokens that end an answer."""
        return [self.encoder.tokenizer.eos_token_id]

    def is_ended(self, example: Example, tokens: list[int]) -> bool:
        """Whether more tokens behind these leave the answer as it is."""
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
    """The scorer of open-ended questions."""

    def room(self, example: Example) -> int:
        return _words(example).max_new_tokens

    def ends(self, model: Model) -> Collection[int]:
        """The tokenizer's end-of-sequence token, and those special tokens that the model's own generation settings
        name, such as the end of a turn of a chat, which several tokenizers have beside it."""
        tokenizer = self.encoder.tokenizer
        added = tokenizer.added_tokens_decoder
        # A default may be any word.
        special = {token for token in model.named_ends if token in added and added[token].special}
        return special | {tokenizer.eos_token_id} - {None}

    def is_ended(self, example: Example, tokens: list[int]) -> bool:
        """Whether the newest of these ``tokens`` completes one of the task's stop texts. Only as many of the last ones
        are decoded as may hold it, and none where the newest has no last character of a stop text."""
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
        """Whether a token's text has one of the characters ``last``, or a part of a character."""
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


def _words(example: Example) -> OpenEnded:
    assert isinstance(example.wording, OpenEnded), f"{example.id}: has options"
    return example.wording
