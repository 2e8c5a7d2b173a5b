"""Texts, each measured by itself, whatever the protocol: how much a model has forgotten.

    nats(t) = − Σᵢ log softmax(h(t_<i) · Wᵀ)[tᵢ]

over the tokens of a text, per byte of UTF-8, so that models with different tokenizers compare. BOS is the context of
the first token if the tokenizer adds one; otherwise the first token is context alone, and its bytes do not count. A
text longer than ``evaluation.max_length`` loses its end.
"""

from dataclasses import dataclass, replace

from scipy.special import stdtrit  # not scipy.stats, which takes a tenth of a command's start

from moslora.errors import UsageError
from moslora.evaluation.cloze import Cloze
from moslora.evaluation.intervals import Interval, mean_of
from moslora.evaluation.scorer import Question
from moslora.runs.answers import TaskAnswers
from moslora.runs.outcomes import nats_per_byte
from moslora.runs.predictions import Prediction
from moslora.tasks import Example


class Texts(Cloze):
    """The scorer of texts, which are the only option of an empty prompt."""

    def encode(self, example: Example) -> Question:
        text = self.encoder.encode_text(example.choices[0])
        if not text.bytes:
            raise UsageError(
                f"{example.id} ({example.choices[0][:40]!r}): this text is too short: after one token or"
                " character of context nothing is left to predict; remove it, or raise evaluation.max_length"
            )
        return Question(example, [text])

    def read(self, question: Question, output: list[float]) -> Prediction:
        prediction = Prediction.of(question.example, output, truncated=question.truncated)
        return replace(prediction, bytes=question.texts[0].bytes)


@dataclass(frozen=True)
class TextScore:
    """The numbers of one set of texts, which are in no average."""

    n: int
    nats_per_byte: float  # mean over the texts
    standard_error: float | None  # by clusters (`mean_of`); ``None`` below two of them
    interval: Interval | None  # 95 %, by Student's t
    truncated: int  # texts that lost their end
    clusters: int | None = None  # that they are in, such as articles; ``None`` if each is alone


def score_texts(measured: TaskAnswers) -> TextScore:
    """The numbers of one set of texts (at least one)."""
    mean = mean_of(nats_per_byte(measured), measured.clusters)
    interval = None
    if mean.error is not None:
        half = float(stdtrit(mean.clusters - 1, 0.975)) * mean.error
        interval = (mean.value - half, mean.value + half)
    clusters = mean.clusters if mean.clusters < mean.n else None
    return TextScore(mean.n, mean.value, mean.error, interval, sum(measured.truncated), clusters)
