"""Open-ended questions, answered in words, whatever the protocol: the model writes, and its text is matched.

Greedy decoding, up to an end token, the first of the task's stop texts, or ``max_new_tokens``. What is
read from the text, and when it is right, says the task's `moslora.tasks.matching.Match`; the metric is lm-eval's
``exact_match`` of ``generate_until``. A question too long for the context loses its start, so that the text fits
behind it.
"""

from collections.abc import Collection
from functools import cached_property

from moslora.evaluation.generate import Generate
from moslora.evaluation.model import Model
from moslora.evaluation.scorer import EncodedQuestion
from moslora.runs.predictions import Prediction
from moslora.tasks import Example, OpenEnded

BYTES_OF_A_CHARACTER = 4
"""At most, in UTF-8; a token has at least one of them."""

PART_OF_A_CHARACTER = "\ufffd"
"""How a tokenizer decodes bytes that are no whole character."""

SPACE = "\u2581"
"""How SentencePiece writes a space, which it may leave out where a text begins."""


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


def _words(example: Example) -> OpenEnded:
    assert isinstance(example.wording, OpenEnded), f"{example.id}: has options"
    return example.wording
