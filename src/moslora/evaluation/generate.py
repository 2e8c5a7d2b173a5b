"""LLM-Adapters' procedure (arXiv 2304.01933, ``commonsense_evaluate.py``): write an answer, search it.

The model continues the prompt by at most 32 tokens, by beam search or greedily; the first hit of the task's
regular expression behind "### Response:" is its answer, and no hit is a wrong one. One question at a time:
with several the official script pads on the left with token 0 and no mask, which changes answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import GenerationConfig, PreTrainedModel

from moslora.base.load import pad_id
from moslora.data.encode import EncodedText, Encoder
from moslora.evaluation.predictions import Prediction
from moslora.prompts import Format, answer_pattern, labels
from moslora.tasks import Example

MAX_NEW_TOKENS = 32
RESPONSE_HEADER = "### Response:"


@dataclass(frozen=True)
class Generate:
    """The protocol ``generate``; see `moslora.evaluation.run.Scorer`. ``beams`` = 1 is greedy."""

    model: PreTrainedModel
    encoder: Encoder
    format: Format
    beams: int

    batch_size: ClassVar[int] = 1
    primary: ClassVar[str] = "accuracy"

    def encode(self, example: Example) -> EncodedText:
        """The prompt as tokens."""
        return self.encoder.encode(self.format.generation_prompt(example), "", eos=False)

    def score(self, examples: Sequence[Example], *, alone: bool = False) -> list[Prediction]:
        """Predictions in the order of ``examples``. Every question is by itself, ``alone`` or not."""
        return [self._predict(example) for example in examples]

    def _predict(self, example: Example) -> Prediction:
        prompt = self.encode(example)
        text = self._continue(prompt.ids)
        answer = find_answer(text, example.task)
        names = labels(example)
        return Prediction(
            id=example.id,
            task=example.task,
            gold=example.gold,
            prediction=names.index(answer) if answer in names else None,
            text=text,
            answer=answer,
            truncated=prompt.truncated,
        )

    def _continue(self, ids: list[int]) -> str:
        tokenizer = self.encoder.tokenizer
        input_ids = torch.tensor([ids], device=self.model.device)  # (1, T)
        config = GenerationConfig(
            max_new_tokens=MAX_NEW_TOKENS,
            num_beams=self.beams,
            do_sample=False,
            use_cache=True,
            pad_token_id=pad_id(tokenizer),
            eos_token_id=tokenizer.eos_token_id,
        )
        generate: Any = self.model.generate  # from GenerationMixin, which PreTrainedModel does not declare
        output = generate(input_ids, attention_mask=torch.ones_like(input_ids), generation_config=config)
        return str(tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True))  # output (1, T + new)


def find_answer(text: str, task: str) -> str:
    """The first label in a continuation, "" if there is none. A second response header ends the response."""
    hit = answer_pattern(task).search(text.split(RESPONSE_HEADER)[0])
    return hit.group() if hit else ""
