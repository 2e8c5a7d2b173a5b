"""Every option's own text behind the question, compared by its log-probability: lm-eval's multiple choice.

    score_j = Σ_t log softmax(h(prompt_j, answer_j,<t) · Wᵀ)[answer_j,t]

with h the last hidden state and W the output layer.
The best score is lm-eval's ``acc``, the best score per character its ``acc_norm``. Prompts may differ between
options (WinoGrande, partial scoring: the option ends the prompt, the rest of the sentence is the answer).
"""

import itertools
from collections.abc import Callable, Sequence
from typing import ClassVar

from moslora.data.encode import EncodedText
from moslora.errors import MosloraError
from moslora.evaluation.scorer import Batched
from moslora.evaluation.served import Pair, Served
from moslora.kernels.rows import common_prefix
from moslora.prompts.protocols import PROTOCOLS, Protocol
from moslora.runs.predictions import Prediction
from moslora.tasks import Example

Scored = tuple[float, bool]
"""An answer's log-probability, and whether greedy decoding would give it."""


class Cloze(Batched[Sequence[EncodedText], list[Scored]]):
    """The protocol ``cloze``; a question has one text per option."""

    protocol: ClassVar[Protocol] = PROTOCOLS["cloze"]

    def encode(self, example: Example) -> list[EncodedText]:
        pairs = [(option.prompt, option.answer) for option in self.format.options(example)]
        texts = self.encoder.encode_all(pairs, joint=self.format.joint, eos=False)
        if any(text.answer_start == 0 for text in texts):
            longest = max(len(text.ids) for text in texts)
            raise MosloraError(
                f"{example.id}: an option of {longest} tokens leaves no room for the prompt; use a larger"
                " evaluation.max_length"
            )
        return texts

    def to_try(self, examples: Sequence[Example]) -> list[Example]:
        first = super().to_try(examples)
        # And those whose answer may be so long that the limit leaves no room for the prompt.
        limit = self.encoder.max_length
        if limit is None:
            return first
        return first + [example for example in examples if _most_tokens(example) >= limit]

    def length(self, question: Sequence[EncodedText]) -> int:
        """Tokens read: the options' common beginning once, unless they are padded, and no last token, which is only
        predicted."""
        if self.engine.pads:
            return len(question) * max(len(text.ids) - 1 for text in question)
        shared = common_prefix(_input_ids(question))
        return shared + sum(len(text.ids) - 1 - shared for text in question)

    def compute(self, questions: Sequence[Sequence[EncodedText]]) -> Callable[[], list[list[Scored]]]:
        texts = list(itertools.chain.from_iterable(questions))
        inputs = [_input_ids(question) for question in questions]
        batch = self.engine.lay(inputs, self.model.device)
        places: list[int] = []  # of the tokens that an answer's token, its target, follows
        targets: list[int] = []
        for text, path in zip(texts, batch.paths, strict=True):
            places += path[text.answer_start - 1 :]
            targets += text.ids[text.answer_start :]
        values, hits = self.engine.log_p(batch, places, targets)  # (P,), (P,)
        # The copies may not be there yet when this returns: `read` is called once the device has been waited for.
        values = values.to("cpu", non_blocking=True)
        hits = hits.to("cpu", non_blocking=True)
        counts = [len(text.ids) - text.answer_start for text in texts]

        def read() -> list[list[Scored]]:
            scores: list[Scored] = []
            for value, hit in zip(values.double().split(counts), hits.split(counts), strict=True):
                scores.append((float(value.sum()), bool(hit.all())))
            of_texts = iter(scores)
            return [list(itertools.islice(of_texts, len(question))) for question in questions]

        return read

    def pairs(self, question: Sequence[EncodedText]) -> list[Pair]:
        return [(text.ids[: text.answer_start], text.ids[text.answer_start :]) for text in question]

    def ask(self, question: Sequence[EncodedText], served: Served) -> list[Scored]:
        return [(value, False) for value in served.log_probabilities(self.pairs(question))]  # nobody knows the second

    def read(self, example: Example, question: Sequence[EncodedText], found: list[Scored]) -> Prediction:
        characters = tuple(option.characters for option in self.format.options(example))
        truncated = any(text.truncated for text in question)
        return Prediction.of(example, [value for value, _ in found], characters=characters, truncated=truncated)


def _most_tokens(example: Example) -> int:
    """Upper bound of the tokens of an answer, which is an option's text or a part of the question: one per byte, beside
    BOS and a space that some tokenizers add."""
    longest = max(len(text.encode()) for text in (example.question, *example.choices))
    return longest + 2


def _input_ids(question: Sequence[EncodedText]) -> list[list[int]]:
    """The tokens that the model reads of each option: no last one, which is only predicted."""
    return [text.ids[:-1] for text in question]
