"""Labels compared by their one differing token: exact, at one forward pass a question.

With p the prompt and the tokens that all labels begin with, and o_j the token in which label j differs,

    score_j = log softmax_j(log p(o_j | p))

which is what comparing the labels' full log-probabilities comes to, because they share every other term.
"""

from dataclasses import replace
from typing import ClassVar

from moslora.errors import MosloraError
from moslora.evaluation.scorer import EncodedQuestion, OptionScorer
from moslora.kernels.rows import common_prefix
from moslora.prompts.protocols import PROTOCOLS, Protocol
from moslora.runs.outcomes import log_softmax
from moslora.runs.predictions import Prediction
from moslora.tasks import Example


class Choice(OptionScorer):
    """The protocol ``choice``. An option's prompt ends before its one token that differs."""

    protocol: ClassVar[Protocol] = PROTOCOLS["choice"]
    one_prompt = True

    def encode(self, example: Example) -> EncodedQuestion:
        texts = self.encode_options(example)
        ids = [text.ids for text in texts]
        common = common_prefix(ids)
        ends = {tuple(row[common:]) for row in ids}
        if common == 0 or len(ends) < len(ids) or any(len(end) != 1 for end in ends):
            raise MosloraError(
                f"task {example.task}, format {self.format.name}, {len(ids)} options: protocol choice needs options"
                " that differ only in their last token; use evaluation.protocol=cloze or generate"
            )
        return EncodedQuestion(example, [replace(text, answer_start=common) for text in texts])

    def read(self, question: EncodedQuestion, output: list[float]) -> Prediction:
        return Prediction.of(question.example, log_softmax(output), truncated=question.truncated)
