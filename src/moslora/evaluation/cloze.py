"""Every option's own text behind the question, compared by its log-probability: lm-eval's multiple choice.

    score_j = Σ_t log softmax(h(prompt_j, answer_j,<t) · Wᵀ)[answer_j,t]

The best score is lm-eval's ``acc``, the best score per character its ``acc_norm``. Prompts may differ between
options (WinoGrande, partial scoring: the option ends the prompt, the rest of the sentence is the answer).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moslora.base.load import final_hidden, output_weight, pad_id
from moslora.data.encode import EncodedText, Encoder
from moslora.data.steps import PAD_MULTIPLE, pad
from moslora.errors import MosloraError
from moslora.evaluation.batches import batches
from moslora.evaluation.predictions import Prediction, argmax
from moslora.prompts import Format
from moslora.tasks import Example

LOGITS_AT_ONCE = 2**25
"""Logits held at a time, 128 MB in float32: a batch over a vocabulary of 128k would be many times that."""


@dataclass(frozen=True)
class Cloze:
    """The protocol ``cloze``; see `moslora.evaluation.run.Scorer`."""

    model: PreTrainedModel
    encoder: Encoder
    format: Format
    batch_size: int

    primary: ClassVar[str] = "accuracy_per_character"

    @cached_property
    def weight(self) -> Tensor:
        """The output layer in float32, shape ``(V, H)``: cast once, because every token needs all of it."""
        return output_weight(self.model).float()

    def encode(self, example: Example) -> list[EncodedText]:
        """One text per option.

        Raises:
            MosloraError: the answer fills ``max_length``, so that nothing is left to condition on.
        """
        texts = self.encoder.encode_all(
            [(option.prompt, option.answer) for option in self.format.options(example)],
            joint=self.format.joint,
            eos=False,
        )
        if any(text.answer_start == 0 for text in texts):
            raise MosloraError(
                f"{example.id}: no token of the prompt is left beside an option of"
                f" {max(len(text.ids) for text in texts)} tokens; give a larger evaluation.max_length"
            )
        return texts

    def score(self, examples: Sequence[Example], *, alone: bool = False) -> list[Prediction]:
        """Predictions in the order of ``examples``; ``alone``: every sequence by itself, without padding."""
        encoded = [self.encode(example) for example in examples]
        sequences = [text for texts in encoded for text in texts]  # the options of all questions
        sums = [0.0] * len(sequences)
        for batch in batches([len(text.ids) for text in sequences], 1 if alone else self.batch_size):
            for i, value in zip(batch, self._sums([sequences[i] for i in batch], alone=alone), strict=True):
                sums[i] = value
        predictions = []
        for example, texts in zip(examples, encoded, strict=True):
            scores, sums = tuple(sums[: len(texts)]), sums[len(texts) :]
            predictions.append(
                Prediction(
                    id=example.id,
                    task=example.task,
                    gold=example.gold,
                    prediction=argmax(scores),
                    scores=scores,
                    characters=tuple(option.characters for option in self.format.options(example)),
                    truncated=any(text.truncated for text in texts),
                )
            )
        return predictions

    def _sums(self, texts: Sequence[EncodedText], *, alone: bool) -> list[float]:
        """The summed log-probability of every text's answer, one forward pass."""
        # The last token is only predicted, never read.
        input_ids, attention_mask = pad(
            [text.ids[:-1] for text in texts],
            pad_id=pad_id(self.encoder.tokenizer),
            multiple=1 if alone else PAD_MULTIPLE,
            device=self.weight.device,
        )  # (B, T)
        hidden = final_hidden(self.model, input_ids, attention_mask)  # (B, T, H)
        # P answer tokens in the batch; each is predicted at the position before its own.
        counts = [len(text.ids) - text.answer_start for text in texts]
        rows = [row for row, count in enumerate(counts) for _ in range(count)]
        columns = [at for text in texts for at in range(text.answer_start - 1, len(text.ids) - 1)]
        targets = [token for text in texts for token in text.ids[text.answer_start :]]
        values = token_log_probabilities(
            hidden[rows, columns].float(),  # (P, H)
            self.weight,
            torch.tensor(targets, device=hidden.device),
        )
        return [float(part.sum()) for part in values.double().cpu().split(counts)]


def token_log_probabilities(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """log softmax(hidden · weightᵀ) at the targets, without holding all logits at once.

    Args:
        hidden: shape ``(P, H)``, float32.
        weight: shape ``(V, H)``, float32.
        targets: shape ``(P,)``, token ids.

    Returns:
        Shape ``(P,)``, float32, in nats.
    """
    step = max(1, LOGITS_AT_ONCE // weight.shape[0])
    parts = []
    for start in range(0, len(targets), step):
        logits = hidden[start : start + step] @ weight.T  # (≤ step, V)
        chosen = logits.gather(1, targets[start : start + step, None]).squeeze(1)
        parts.append(chosen - logits.logsumexp(dim=1))
    return torch.cat(parts)
