"""Open-ended questions, answered in words, whatever the protocol: the model writes, and its text is matched.

Greedy decoding, up to an end token, the first of the task's stop texts, or ``max_new_tokens``. What is
read from the text, and when it is right, says the task's `moslora.tasks.matching.Match`; the metric is lm-eval's
``exact_match`` of ``generate_until``. A question too long for the context loses its start, so that the text fits
behind it.
"""

from collections.abc import Collection

from moslora.evaluation.generate import Generate
from moslora.evaluation.scorer import Question
from moslora.runs.predictions import Prediction
from moslora.tasks import Example, OpenEnded

BYTES_OF_A_CHARACTER = 4
"""At most, in UTF-8; a token has at least one of them."""


class OpenAnswers(Generate):
    """The scorer of open-ended questions."""

    def room(self, example: Example) -> int:
        return _words(example).max_new_tokens

    def ends(self) -> Collection[int]:
        """The tokenizer's end-of-sequence token, and those special tokens that the model's own generation settings
        name, such as the end of a turn of a chat, which several tokenizers have beside it."""
        tokenizer = self.encoder.tokenizer
        named = getattr(self.model.generation_config, "eos_token_id", None) or []
        if isinstance(named, int):
            named = [named]
        added = tokenizer.added_tokens_decoder
        special = {token for token in named if token in added and added[token].special}  # a default may be any word
        return special | {tokenizer.eos_token_id} - {None}

    def is_ended(self, example: Example, tokens: list[int]) -> bool:
        """Whether the newest of these ``tokens`` completes one of the task's stop texts. Only as many of the last ones
        are decoded as may hold it."""
        stop = _words(example).stop
        longest = max((len(text.encode()) for text in stop), default=0)
        newest = tokens[-longest - BYTES_OF_A_CHARACTER :]
        tail = self.encoder.tokenizer.decode(newest, skip_special_tokens=True) if stop else ""
        return any(text in tail for text in stop)

    def read(self, question: Question, output: str) -> Prediction:
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
