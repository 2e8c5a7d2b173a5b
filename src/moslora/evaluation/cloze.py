"""Every option's own text behind the question, compared by its log-probability: lm-eval's multiple choice.

The best score is lm-eval's ``acc``, the best score per character its ``acc_norm``. Prompts may differ between
options (WinoGrande, partial scoring: the option ends the prompt, the rest of the sentence is the answer).
"""

from typing import ClassVar

from moslora.errors import MosloraError
from moslora.evaluation.scorer import EncodedQuestion, OptionScorer
from moslora.prompts.protocols import PROTOCOLS, Protocol
from moslora.runs.predictions import Prediction
from moslora.tasks import Example


class Cloze(OptionScorer):
    """The protocol ``cloze``; a question has one text per option."""

    protocol: ClassVar[Protocol] = PROTOCOLS["cloze"]

    def encode(self, example: Example) -> EncodedQuestion:
        question = EncodedQuestion(example, self.encode_options(example))
        if any(text.answer_start == 0 for text in question.texts):
            raise MosloraError(
                f"{example.id}: an option of {question.tokens} tokens leaves no room for the prompt; use a larger"
                " evaluation.max_length"
            )
        return question

    def read(self, question: EncodedQuestion, output: list[float]) -> Prediction:
        characters = tuple(option.characters for option in self.format.options(question.example))
        return Prediction.of(question.example, output, characters=characters, truncated=question.truncated)
