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

from moslora.base.load import final_hidden, output_weight, pad_id
from moslora.data.encode import Encoder
from moslora.data.steps import PAD_MULTIPLE, pad
from moslora.errors import MosloraError
from moslora.evaluation.batches import batches
from moslora.evaluation.predictions import Prediction, argmax
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
    batch_size: int

    primary: ClassVar[str] = "accuracy"

    def encode(self, example: Example) -> Question:
        """The question as tokens.

        Raises:
            MosloraError: the options differ in more than one token, so that one position cannot compare them.
        """
        options = self.format.options(example)
        texts = self.encoder.encode_all([(o.prompt, o.answer) for o in options], joint=self.format.joint, eos=False)
        ids = [text.ids for text in texts]
        common = _common_prefix(ids)
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
        """Predictions in the order of ``examples``; ``alone``: every sequence by itself, without padding."""
        questions = [self.encode(example) for example in examples]
        weight = output_weight(self.model)  # (V, H)
        scores: dict[int, tuple[float, ...]] = {}
        for batch in batches([len(q.input_ids) for q in questions], 1 if alone else self.batch_size):
            input_ids, attention_mask = pad(
                [questions[i].input_ids for i in batch],
                pad_id=pad_id(self.encoder.tokenizer),
                multiple=1 if alone else PAD_MULTIPLE,
                device=weight.device,
            )  # (B, T)
            hidden = final_hidden(self.model, input_ids, attention_mask)  # (B, T, H)
            for row, i in enumerate(batch):
                last = hidden[row, len(questions[i].input_ids) - 1].float()  # (H,)
                logits = weight[questions[i].option_tokens].float() @ last  # (options,)
                scores[i] = tuple(torch.log_softmax(logits.double(), dim=0).tolist())
        return [
            Prediction(
                id=example.id,
                task=example.task,
                gold=example.gold,
                prediction=argmax(scores[i]),
                scores=scores[i],
                truncated=questions[i].truncated,
            )
            for i, example in enumerate(examples)
        ]


def _common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens in which all rows agree."""
    length = 0
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        length += 1
    return length
