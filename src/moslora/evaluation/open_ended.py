"""Open-ended questions, answered in words, whatever the protocol: the model writes, and its text is matched.

Greedy decoding, up to an end token (`end_tokens`), the first of the task's stop texts, or ``max_new_tokens``. What is
read from the text, and when it is right, says the task's `moslora.tasks.matching.Match`; the metric is lm-eval's
``exact_match`` of ``generate_until``. A question too long for the context loses its start, so that the text fits
behind it.
"""

from collections.abc import Collection, Sequence

from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.evaluation.generate import Writer
from moslora.evaluation.scorer import Question
from moslora.runs.predictions import Prediction
from moslora.tasks import Example, OpenEnded

BYTES_OF_A_CHARACTER = 4
"""At most, in UTF-8; a token has at least one of them."""


class OpenAnswers(Writer):
    """The scorer of open-ended questions."""

    def room(self, example: Example) -> int:
        return _words(example).max_new_tokens

    def ends(self) -> Collection[int]:
        return end_tokens(self.model, self.encoder.tokenizer)

    def is_ended(self, example: Example, tokens: list[int]) -> bool:
        return completes(self.encoder.tokenizer, _words(example).stop, tokens)

    def work(self, example: Example) -> int:
        return len(self.format.generation_prompt(example)) + self.room(example) * BYTES_OF_A_CHARACTER

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
