"""LLM-Adapters' procedure (arXiv 2304.01933, ``commonsense_evaluate.py``): write an answer, search it.

The model continues the prompt by at most 32 tokens, by beam search or greedily; the first hit of the task's
regular expression behind "### Response:" is its answer, and no hit is a wrong one. Greedy writing ends where the
answer cannot change any more. Several questions at a time are padded on the left, masked, and keep their positions:
the official script pads with token 0 and no mask, which changes answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.base.load import pad_id
from moslora.data.encode import EncodedText, Encoder
from moslora.evaluation.batches import in_batches
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
    batch_tokens: int

    block_size: ClassVar[int] = 32  # a block takes long, and a limit should cost little more than what it asks for
    primary: ClassVar[str] = "accuracy"

    def encode(self, example: Example) -> EncodedText:
        """The prompt as tokens."""
        return self.encoder.encode(self.format.generation_prompt(example), "", eos=False)

    def score(self, examples: Sequence[Example], *, alone: bool = False) -> list[Prediction]:
        """Predictions in the order of ``examples``, which are of one task; ``alone``: every question by itself."""
        prompts = [self.encode(example) for example in examples]
        texts = in_batches(
            lambda batch: self._continue([prompt.ids for prompt in batch], examples[0].task),
            prompts,
            lengths=[self.beams * (len(prompt.ids) + MAX_NEW_TOKENS) for prompt in prompts],
            tokens=1 if alone else self.batch_tokens,
        )
        return [
            self._read(example, text, prompt.truncated)
            for example, prompt, text in zip(examples, prompts, texts, strict=True)
        ]

    def _read(self, example: Example, text: str, truncated: bool) -> Prediction:
        answer = find_answer(text, example.task)
        names = labels(example)
        return Prediction(
            id=example.id,
            task=example.task,
            gold=example.gold,
            prediction=names.index(answer) if answer in names else None,
            text=text,
            answer=answer,
            truncated=truncated,
        )

    def _continue(self, prompts: Sequence[list[int]], task: str) -> list[str]:
        tokenizer = self.encoder.tokenizer
        longest = max(map(len, prompts))
        padding = pad_id(tokenizer)
        input_ids = torch.tensor([[padding] * (longest - len(ids)) + ids for ids in prompts])  # (B, T)
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
        config = GenerationConfig(
            max_new_tokens=MAX_NEW_TOKENS,
            num_beams=self.beams,
            do_sample=False,
            use_cache=True,
            pad_token_id=padding,
            eos_token_id=tokenizer.eos_token_id,
        )
        decided = Decided(tokenizer, task, longest)
        generate: Any = self.model.generate  # from GenerationMixin, which PreTrainedModel does not declare
        output = generate(
            input_ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            generation_config=config,
            stopping_criteria=[decided] if self.beams == 1 else [],
        )  # (B, T + new)
        if self.beams == 1:
            return [decided.texts[row] for row in range(len(prompts))]
        return list(tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True))


class Decided(StoppingCriteria):
    """Ends a row of greedy writing at its end of text, or where more text cannot change the answer.

    Args:
        tokenizer: of the model.
        task: of all rows.
        start: tokens of the padded prompts.

    Attributes:
        texts: row -> what it has written, up to its own end.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, task: str, start: int) -> None:
        self.tokenizer, self.task, self.start = tokenizer, task, start
        self.texts: dict[int, str] = {}
        self._ended: set[int] = set()

    def __call__(self, input_ids: Tensor, scores: Any, **others: Any) -> Tensor:
        """Which rows of ``input_ids``, shape ``(B, T + new)``, have ended: bool of shape ``(B,)``."""
        for row, ids in enumerate(input_ids[:, self.start :].tolist()):
            if row not in self._ended:
                text = self.texts[row] = str(self.tokenizer.decode(ids, skip_special_tokens=True))
                if ids[-1] == self.tokenizer.eos_token_id or find_answer(text, self.task) or RESPONSE_HEADER in text:
                    self._ended.add(row)
        return torch.tensor([row in self._ended for row in range(len(input_ids))], device=input_ids.device)


def find_answer(text: str, task: str) -> str:
    """The first label in a continuation, "" if there is none. A second response header ends the response."""
    hit = answer_pattern(task).search(text.split(RESPONSE_HEADER)[0])
    return hit.group() if hit else ""
