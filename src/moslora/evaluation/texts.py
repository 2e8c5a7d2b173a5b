"""Texts, each measured by itself, whatever the protocol: how much a model has forgotten.

    nats(t) = − Σᵢ log softmax(h(t_<i) · Wᵀ)[tᵢ]

over the tokens of a text, per byte of UTF-8, so that models with different tokenizers compare. BOS is the context of
the first token if the tokenizer adds one; otherwise the first token is context alone, and its bytes do not count. A
text longer than ``evaluation.max_length`` loses its end.
"""

from collections.abc import Sequence

from moslora.data.encode import EncodedText
from moslora.errors import UsageError
from moslora.evaluation.cloze import Cloze, Scored
from moslora.evaluation.predictions import Prediction
from moslora.tasks import Example


class Texts(Cloze):
    """The scorer of texts, which are the only option of an empty prompt."""

    def encode(self, example: Example) -> list[EncodedText]:
        text = self.encoder.encode_text(example.choices[0])
        if not text.bytes:
            why = "nothing of this text is predicted, since it is one token and the tokenizer adds no BOS; remove it"
            raise UsageError(f"{example.id} ({example.choices[0][:40]!r}): {why}")
        return [text]

    def work(self, example: Example) -> int:
        return len(example.choices[0])

    def read(self, example: Example, question: Sequence[EncodedText], found: list[Scored]) -> Prediction:
        (text,), ((score, _),) = question, found
        return Prediction.of(example, [score], truncated=text.truncated, bytes=text.bytes)
