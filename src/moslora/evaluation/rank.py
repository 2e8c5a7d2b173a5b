"""Labels compared by their one differing token: exact, at one forward pass a question.

With p the prompt and the tokens that all labels begin with, and o_j the token in which label j differs,

    score_j = log softmax_j(h(p) · W[o_j])

which is what comparing the labels' full log-probabilities comes to, because they share every other term.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers import PreTrainedModel

from moslora.base.load import final_hidden, output_weight
from moslora.data.encode import Encoder
from moslora.errors import MosloraError
from moslora.evaluation.batches import BLOCK_SIZE, in_batches
from moslora.evaluation.predictions import Prediction, argmax
from moslora.kernels.rows import common_prefix, lay, send
from moslora.prompts import Format
from moslora.tasks import Example


@dataclass(frozen=True)
class Question:
    """What the model reads (``input_ids``) and the token of every option that may come next."""

    input_ids: list[int]
    option_tokens: list[int]
    truncated: bool


@dataclass(frozen=True)
class Rank:
    """The protocol ``rank``; see `moslora.evaluation.run.Scorer`."""

    model: PreTrainedModel
    encoder: Encoder
    format: Format
    batch_tokens: int

    block_size: ClassVar[int] = BLOCK_SIZE
    primary: ClassVar[str] = "accuracy"

    def encode(self, example: Example) -> Question:
        """The question as tokens.

        Raises:
            MosloraError: the options differ in more than one token, so that one position cannot compare them.
        """
        options = self.format.options(example)
        texts = self.encoder.encode_all([(o.prompt, o.answer) for o in options], joint=self.format.joint, eos=False)
        ids = [text.ids for text in texts]
        common = common_prefix(ids)
        tokens = [row[common] for row in ids if len(row) == common + 1]
        if common == 0 or len(set(tokens)) < len(ids):
            ends = [self.encoder.tokenizer.convert_ids_to_tokens(row[common:]) for row in ids]
            raise MosloraError(
                f"task {example.task}, format {self.format.name}: protocol rank needs options that differ in"
                f" their last token only, but behind what they share this tokenizer reads {ends};"
                " use evaluation.protocol=cloze"
            )
        return Question(ids[0][:common], tokens, truncated=texts[0].truncated)

    def score(self, examples: Sequence[Example], *, alone: bool = False) -> list[Prediction]:
        """Predictions in the order of ``examples``; ``alone``: every question by itself."""
        questions = [self.encode(example) for example in examples]
        scores = in_batches(
            self._scores,
            questions,
            lengths=[len(q.input_ids) for q in questions],
            tokens=1 if alone else self.batch_tokens,
        )
        return [
            Prediction(
                id=example.id,
                task=example.task,
                gold=example.gold,
                prediction=argmax(found),
                scores=found,
                truncated=question.truncated,
            )
            for example, question, found in zip(examples, questions, scores, strict=True)
        ]

    def _scores(self, questions: Sequence[Question]) -> list[tuple[float, ...]]:
        """Every question's scores, from one forward pass."""
        weight = output_weight(self.model)  # (V, H)
        tokens, rows, places = lay([[q.input_ids for q in questions]], weight.device)
        hidden = final_hidden(self.model, tokens, rows)  # (T, H)
        labels = sorted({token for q in questions for token in q.option_tokens})
        last = hidden.index_select(0, send([path[-1] for path in places], weight.device))
        options = weight.index_select(0, send(labels, weight.device))
        logits = (last.float() @ options.float().T).double().cpu()  # (questions, labels)
        return [
            tuple(torch.log_softmax(row[[labels.index(token) for token in q.option_tokens]], dim=0).tolist())
            for q, row in zip(questions, logits, strict=True)
        ]
