"""Texts, each measured by itself, whatever the protocol: how much a model has forgotten.

    nats(t) = − Σᵢ log softmax(h(t_<i) · Wᵀ)[tᵢ]

over the tokens of a text, per byte of UTF-8, so that models with different tokenizers compare. BOS is the context of
the first token if the tokenizer adds one; otherwise the first token is context alone, and its bytes do not count. A
text longer than ``evaluation.max_length`` loses its end.
"""

from dataclasses import replace

from moslora.errors import UsageError
from moslora.evaluation.cloze import Cloze
from moslora.evaluation.scorer import EncodedQuestion
from moslora.runs.predictions import Prediction
from moslora.tasks import Example


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
