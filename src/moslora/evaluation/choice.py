"""Labels compared by their one differing token: exact, at one forward pass a question.

With p the prompt and the tokens that all labels begin with, and o_j the token in which label j differs,

    score_j = log softmax_j(log p(o_j | p))

which is what comparing the labels' full log-probabilities comes to, because they share every other term.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from moslora.errors import MosloraError, some
from moslora.evaluation.scorer import Batched
from moslora.evaluation.served import Pair, Served
from moslora.kernels.rows import common_prefix
from moslora.prompts.protocols import PROTOCOLS, Protocol
from moslora.runs.outcomes import log_softmax
from moslora.runs.predictions import Prediction
from moslora.tasks import Example

Scores = tuple[float, ...]


@dataclass(frozen=True)
class Question:
    input_ids: list[int]  # that the model reads
    option_tokens: list[int]  # of every option, the token that may come next
    truncated: bool


class Choice(Batched[Question, Scores]):
    """The protocol ``choice``."""

    protocol: ClassVar[Protocol] = PROTOCOLS["choice"]

    def encode(self, example: Example) -> Question:
        options = self.format.options(example)
        pairs = [(option.prompt, option.answer) for option in options]
        texts = self.encoder.encode_all(pairs, joint=self.format.joint, eos=False)
        ids = [text.ids for text in texts]
        common = common_prefix(ids)
        tokens = [row[common] for row in ids if len(row) == common + 1]
        if common == 0 or len(set(tokens)) < len(ids):
            ends = [str(self.encoder.tokenizer.convert_ids_to_tokens(row[common:])) for row in ids]
            raise MosloraError(
                f"task {example.task}, format {self.format.name}, {len(ids)} options: protocol choice needs options"
                " that differ only in their last token, but after what they share this tokenizer reads"
                f" {some(ends, most=5)}; use evaluation.protocol=cloze or generate"
            )
        return Question(ids[0][:common], tokens, truncated=texts[0].truncated)

    def length(self, question: Question) -> int:
        return len(question.input_ids)

    def compute(self, questions: Sequence[Question]) -> Callable[[], list[Scores]]:
        batch = self.engine.lay([[question.input_ids for question in questions]], self.model.device)
        places: list[int] = []
        options: list[int] = []
        for question, path in zip(questions, batch.paths, strict=True):
            places += path[-1:] * len(question.option_tokens)
            options += question.option_tokens
        values, _ = self.engine.log_p(batch, places, options)
        values = values.to("cpu", non_blocking=True)  # not there yet when this returns: `read` is called later

        def read() -> list[Scores]:
            counts = [len(question.option_tokens) for question in questions]
            return [tuple(torch.log_softmax(row, dim=0).tolist()) for row in values.double().split(counts)]

        return read

    def pairs(self, question: Question) -> list[Pair]:
        return [(question.input_ids, [token]) for token in question.option_tokens]

    def ask(self, question: Question, served: Served) -> Scores:
        return tuple(log_softmax(served.log_probabilities(self.pairs(question))))

    def read(self, example: Example, question: Question, found: Scores) -> Prediction:
        return Prediction.of(example, found, truncated=question.truncated)
