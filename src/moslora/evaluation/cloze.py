"""Every option's own text behind the question, compared by its log-probability: lm-eval's multiple choice.

    score_j = Σ_t log softmax(h(prompt_j, answer_j,<t) · Wᵀ)[answer_j,t]

The best score is lm-eval's ``acc``, the best score per character its ``acc_norm``. Prompts may differ between
options (WinoGrande, partial scoring: the option ends the prompt, the rest of the sentence is the answer).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moslora.base.load import final_hidden, output_weight
from moslora.data.encode import EncodedText, Encoder
from moslora.errors import MosloraError
from moslora.evaluation.batches import BLOCK_SIZE, in_batches
from moslora.evaluation.predictions import Prediction, argmax
from moslora.kernels.rows import common_prefix, lay, send
from moslora.kernels.vocabulary import pieces, sizes
from moslora.prompts import Format
from moslora.tasks import Example

Scored = tuple[float, bool]
"""An answer's log-probability, and whether greedy writing would give it."""


@dataclass(frozen=True)
class Cloze:
    """The protocol ``cloze``; see `moslora.evaluation.run.Scorer`."""

    model: PreTrainedModel
    encoder: Encoder
    format: Format
    batch_tokens: int

    block_size: ClassVar[int] = BLOCK_SIZE
    primary: ClassVar[str] = "accuracy_per_character"

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
        """Predictions in the order of ``examples``; ``alone``: every question by itself."""
        questions = [self.encode(example) for example in examples]
        scores = in_batches(
            self._sums,
            questions,
            lengths=[tokens_read(question) for question in questions],
            tokens=1 if alone else self.batch_tokens,
        )
        return [
            Prediction(
                id=example.id,
                task=example.task,
                gold=example.gold,
                prediction=argmax(found),
                scores=found,
                characters=tuple(option.characters for option in self.format.options(example)),
                truncated=any(text.truncated for text in question),
            )
            for example, question, found in zip(examples, questions, scores, strict=True)
        ]

    def _sums(self, questions: Sequence[Sequence[EncodedText]]) -> list[tuple[float, ...]]:
        return [tuple(value for value, _ in scores) for scores in score_answers(self.model, questions)]


def tokens_read(options: Sequence[EncodedText]) -> int:
    """Tokens of a question that the model reads: what all options begin with once, and no last one, which is only
    predicted."""
    shared = common_prefix([text.ids[:-1] for text in options])
    return shared + sum(len(text.ids) - 1 - shared for text in options)


def score_answers(model: PreTrainedModel, questions: Sequence[Sequence[EncodedText]]) -> list[list[Scored]]:
    """The scores of every question's answers, summed over their tokens, from one forward pass."""
    hidden, places, targets = _read(model, questions)
    values, hits = log_probabilities(hidden, output_weight(model), places, targets)  # (P,), (P,)
    counts = [len(text.ids) - text.answer_start for q in questions for text in q]
    answers = zip(values.double().cpu().split(counts), hits.cpu().split(counts), strict=True)
    scores = ((float(value.sum()), bool(hit.all())) for value, hit in answers)
    return [list(itertools.islice(scores, len(q))) for q in questions]


def _read(model: PreTrainedModel, questions: Sequence[Sequence[EncodedText]]) -> tuple[Tensor, list[int], list[int]]:
    """One forward pass over ``questions``.

    Returns:
        The hidden states h, shape ``(T, H)``; and of all answer tokens, question by question and option by option, the
        places in h that they are predicted from, and the tokens.
    """
    tokens, rows, paths = lay([[text.ids[:-1] for text in q] for q in questions], model.device)
    texts = [text for q in questions for text in q]
    places = [place for text, path in zip(texts, paths, strict=True) for place in path[text.answer_start - 1 :]]
    targets = [token for text in texts for token in text.ids[text.answer_start :]]
    return final_hidden(model, tokens, rows), places, targets


def log_probabilities(
    hidden: Tensor, weight: Tensor, places: Sequence[int], targets: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """log softmax(z) at the targets, z = h · Wᵀ in W's dtype, the target's own logit in float32.

    In bfloat16 the log-probability of a single token may come out a little above 0.

    Args:
        hidden: h, shape ``(T, H)``.
        weight: W, shape ``(V, H)``.
        places: of h, P numbers; those that repeat are computed once.
        targets: P token ids.

    Returns:
        The log-probabilities in nats, float32 of shape ``(P,)``, and whether the target is the likeliest token, bool.
    """
    distinct = {place: number for number, place in enumerate(dict.fromkeys(places))}
    states = hidden.index_select(0, send(list(distinct), hidden.device)).to(weight.dtype)  # (≤ P, H)
    sums, likeliest = [], []
    for part in states.split(sizes(len(weight), weight.device)[0]):
        found = [(piece.log_sum, piece.top, piece.likeliest) for piece in pieces(part, weight)]
        log_sums, tops, tokens = (torch.cat(column, 1) for column in zip(*found, strict=True))  # (part, pieces)
        sums.append(log_sums.logsumexp(1).float())
        likeliest.append(tokens.gather(1, tops.argmax(1, keepdim=True))[:, 0])
    of, wanted = send([distinct[place] for place in places], hidden.device), send(targets, hidden.device)
    chosen = torch.linalg.vecdot(states.index_select(0, of).float(), weight.index_select(0, wanted).float())
    return chosen - torch.cat(sums).index_select(0, of), torch.cat(likeliest).index_select(0, of) == wanted
