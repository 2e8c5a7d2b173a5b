"""Every option's own text behind the question, compared by its log-probability: lm-eval's multiple choice.

    score_j = Σ_t log softmax(h(prompt_j, answer_j,<t) · Wᵀ)[answer_j,t]

The best score is lm-eval's ``acc``, the best score per character its ``acc_norm``. Prompts may differ between
options (WinoGrande, partial scoring: the option ends the prompt, the rest of the sentence is the answer).
"""

import itertools
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from moslora.base.engine import final_hidden, output_weight
from moslora.data.encode import EncodedText
from moslora.errors import MosloraError
from moslora.evaluation.scorer import Scorer
from moslora.kernels.rows import common_prefix, concatenate, send
from moslora.kernels.vocabulary import pieces, sizes
from moslora.prompts.protocols import PROTOCOLS, Protocol
from moslora.runs.predictions import Prediction
from moslora.tasks import Example

Scored = tuple[float, bool]
"""An answer's log-probability, and whether greedy decoding would give it."""


class Cloze(Scorer[Sequence[EncodedText], list[Scored]]):
    """The protocol ``cloze``; a question has one text per option."""

    protocol: ClassVar[Protocol] = PROTOCOLS["cloze"]

    def encode(self, example: Example) -> list[EncodedText]:
        pairs = [(option.prompt, option.answer) for option in self.format.options(example)]
        texts = self.encoder.encode_all(pairs, joint=self.format.joint, eos=False)
        if any(text.answer_start == 0 for text in texts):
            raise MosloraError(
                f"{example.id}: an option of {max(len(text.ids) for text in texts)} tokens leaves no room for the"
                " prompt; use a larger evaluation.max_length"
            )
        return texts

    def to_try(self, examples: Sequence[Example]) -> list[Example]:
        longest = self.encoder.max_length
        if longest is None:
            return super().to_try(examples)
        # An answer is an option's text, or a part of the question. It has a token per byte at most, beside BOS and a
        # space that some tokenizers add.
        large = [
            example
            for example in examples
            if max(len(text.encode()) for text in (example.question, *example.choices)) + 2 >= longest
        ]
        return [*super().to_try(examples), *large]

    def length(self, question: Sequence[EncodedText]) -> int:
        """Tokens read: the options' common beginning once, and no last token, which is only predicted."""
        shared = common_prefix([text.ids[:-1] for text in question])
        return shared + sum(len(text.ids) - 1 - shared for text in question)

    def compute(self, questions: Sequence[Sequence[EncodedText]]) -> Callable[[], list[list[Scored]]]:
        tokens, rows, paths = concatenate([[text.ids[:-1] for text in q] for q in questions], self.model.device)
        texts = [text for q in questions for text in q]
        places = [place for text, path in zip(texts, paths, strict=True) for place in path[text.answer_start - 1 :]]
        targets = [token for text in texts for token in text.ids[text.answer_start :]]
        hidden = final_hidden(self.model, tokens, rows)  # (T, H)
        found = log_probabilities(hidden, output_weight(self.model), places, targets)  # (P,), (P,)
        values, hits = (x.to("cpu", non_blocking=True) for x in found)
        counts = [len(text.ids) - text.answer_start for text in texts]

        def read() -> list[list[Scored]]:
            answers = zip(values.double().split(counts), hits.split(counts), strict=True)
            scores = ((float(value.sum()), bool(hit.all())) for value, hit in answers)
            return [list(itertools.islice(scores, len(q))) for q in questions]

        return read

    def read(self, example: Example, question: Sequence[EncodedText], found: list[Scored]) -> Prediction:
        characters = tuple(option.characters for option in self.format.options(example))
        truncated = any(text.truncated for text in question)
        return Prediction.of(example, [value for value, _ in found], characters=characters, truncated=truncated)


def log_probabilities(
    hidden: Tensor, weight: Tensor, places: Sequence[int], targets: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """log softmax(z) at the targets, z = h · Wᵀ in W's dtype, the target's own logit in float32.

    In bfloat16 the log-probability of a single token may come out a little above 0.

    Args:
        hidden: h, shape ``(T, H)``.
        weight: W, shape ``(V, H)``.
        places: P rows of h; those that repeat are computed once.
        targets: P token ids.

    Returns:
        The log-probabilities in nats, float32 of shape ``(P,)``, and whether the target is the likeliest token, bool.
    """
    distinct = {place: number for number, place in enumerate(dict.fromkeys(places))}
    states = hidden.index_select(0, send(list(distinct), hidden.device)).to(weight.dtype)  # (≤ P, H)
    sums, likeliest = [], []
    for part in states.split(sizes(len(states), len(weight), weight.device)[0]):
        found = [(piece.log_sum, piece.top, piece.likeliest) for piece in pieces(part, weight)]
        log_sums, tops, tokens = (torch.cat(column, 1) for column in zip(*found, strict=True))  # (part, pieces)
        sums.append(log_sums.logsumexp(1).float())
        likeliest.append(tokens.gather(1, tops.argmax(1, keepdim=True))[:, 0])
    of, wanted = send([distinct[place] for place in places], hidden.device), send(targets, hidden.device)
    chosen = torch.linalg.vecdot(states.index_select(0, of).float(), weight.index_select(0, wanted).float())
    return chosen - torch.cat(sums).index_select(0, of), torch.cat(likeliest).index_select(0, of) == wanted
