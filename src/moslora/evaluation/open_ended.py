"""Open-ended questions, answered in words, whatever the protocol: the model writes, and its text is matched.

Greedy decoding, up to the end-of-sequence token, the first of the task's stop texts, or ``max_new_tokens``. What is
read from the text, and when it is right, says the task's `moslora.tasks.matching.Match`; the metric is lm-eval's
``exact_match`` of ``generate_until``. A question too long for the context loses its start, so that the text fits
behind it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.errors import UsageError
from moslora.evaluation.generate import (
    FEWEST_PROMPT_TOKENS,
    WRITING,
    contiguous,
    padded,
    padding_id,
    unset_generation,
)
from moslora.evaluation.scorer import Scorer
from moslora.prompts.protocols import PROTOCOLS, Protocol
from moslora.runs.predictions import Prediction
from moslora.tasks import Example, OpenEnded

BYTES_OF_A_CHARACTER = 4
"""At most, in UTF-8; a token has at least one of them."""


class Question(NamedTuple):
    prompt: list[int]  # that the model reads
    words: OpenEnded  # how it is answered
    truncated: bool


@dataclass(frozen=True)
class OpenAnswers(Scorer[Question, str]):
    """The scorer of open-ended questions."""

    protocol: ClassVar[Protocol] = PROTOCOLS["generate"]
    cpu_block: ClassVar[int] = 32  # as of `Generate`

    def encode(self, example: Example) -> Question:
        words = _words(example)
        longest = self.encoder.max_length
        least = words.max_new_tokens + FEWEST_PROMPT_TOKENS
        if longest is not None and longest < least:
            raise UsageError(
                f"tasks.{example.task}.max_new_tokens = {words.max_new_tokens}: leaves no room for a question in"
                f" evaluation.max_length = {longest}; raise that to {least}, or set fewer"
            )
        prompt = self.format.generation_prompt(example)
        text = self.encoder.encode(prompt, "", eos=False, room=words.max_new_tokens)
        return Question(text.ids, words, text.truncated)

    def to_try(self, examples: Sequence[Example]) -> list[Example]:
        return list(examples[:1])

    def length(self, question: Question) -> int:
        return len(question.prompt) + question.words.max_new_tokens

    def work(self, example: Example) -> int:
        written = _words(example).max_new_tokens * BYTES_OF_A_CHARACTER
        return len(self.format.generation_prompt(example)) + written

    def compute(self, questions: Sequence[Question]) -> Callable[[], list[str]]:
        tokenizer = self.encoder.tokenizer
        words = questions[0].words  # those of one task
        stops = Stops(tokenizer, words.stop)
        written = decode(
            self.model,
            [question.prompt for question in questions],
            max_new_tokens=words.max_new_tokens,
            ended=stops.reached,
            tokenizer=tokenizer,
        )
        texts = tokenizer.batch_decode(written, skip_special_tokens=True)
        return lambda: [words.before_stop(text) for text in texts]

    def read(self, example: Example, question: Question, found: str) -> Prediction:
        match = question.words.match
        answer = match.read(found)
        position = match.position(answer, example.choices)
        return Prediction(
            example.id,
            example.task,
            gold=None,
            prediction=position,
            text=found,
            answer=answer,
            truncated=question.truncated,
        )


def _words(example: Example) -> OpenEnded:
    assert isinstance(example.wording, OpenEnded), f"{example.id}: has options"
    return example.wording


@dataclass(frozen=True)
class Stops:
    """Texts that end a written one."""

    tokenizer: PreTrainedTokenizerBase
    texts: Sequence[str]

    def reached(self, row: int, tokens: list[int]) -> bool:
        """Whether the newest of these ``tokens`` completes one of the texts. Only so many of the last tokens are
        decoded as may hold it."""
        if not self.texts:
            return False
        longest = max(len(text.encode()) for text in self.texts)
        tail = self.tokenizer.decode(tokens[-longest - BYTES_OF_A_CHARACTER :], skip_special_tokens=True)
        return any(text in tail for text in self.texts)


def decode(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    ended: Callable[[int, list[int]], bool],
    tokenizer: PreTrainedTokenizerBase,
) -> list[list[int]]:
    """The new tokens of each prompt, greedy; ``ended`` says of a row and its new tokens whether they are enough."""
    padding = padding_id(tokenizer)
    input_ids, mask = padded(prompts, padding)  # (B, T)
    length = input_ids.shape[1]
    settings = WRITING | {"max_new_tokens": max_new_tokens, "num_beams": 1}
    config = GenerationConfig(**settings, pad_token_id=padding, eos_token_id=tokenizer.eos_token_id)
    generate: Any = model.generate
    together = model.get_output_embeddings().register_forward_pre_hook(contiguous)
    with together, unset_generation(model):
        output = generate(
            input_ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=config,
            stopping_criteria=[Enough(ended, length)],
        )  # (B, T + new)
    new: list[list[int]] = output[:, length:].tolist()
    return new


@dataclass(frozen=True)
class Enough(StoppingCriteria):
    """Ends a row whose new tokens are enough."""

    ended: Callable[[int, list[int]], bool]
    start: int  # length of the padded prompts in tokens

    def __call__(self, input_ids: Tensor, scores: Any, **others: Any) -> Tensor:
        """Which rows of ``input_ids``, shape ``(B, T + new)``, have ended: bool of shape ``(B,)``."""
        rows = input_ids[:, self.start :].tolist()
        ended = [self.ended(row, tokens) for row, tokens in enumerate(rows)]
        return torch.tensor(ended, device=input_ids.device)
