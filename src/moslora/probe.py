"""What tells whether two models compute the same: their log-probabilities on a few short texts."""

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.data.encode import Encoder

PROMPTS = (
    "Question: Which force pulls a dropped stone to the ground?\nAnswer: gravity",
    "The kettle was still warm, so she knew that somebody had made tea.",
    "Below is an instruction that describes a task.\n\n### Response:\nthe correct answer is answer2",
    "Q: Robin carried the groceries for an old neighbour. How would Robin be described?\nA: kind",
)
"""What two models are compared on: short, ordinary text, with and without the formats' markers."""


class LogProbabilities(NamedTuple):
    """Of one prompt: ``all`` of shape (length, vocabulary); ``following``, of the tokens that follow, (length - 1,)."""

    all: Tensor
    following: Tensor


@torch.inference_mode()
def log_probabilities(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[LogProbabilities]:
    """What ``model`` thinks of :data:`PROMPTS`."""
    encoder = Encoder(tokenizer, max_length=None)
    found = []
    for prompt in PROMPTS:
        ids = torch.tensor([encoder.encode(prompt, "", eos=False).ids])
        values = model(input_ids=ids).logits[0].float().log_softmax(-1)
        found.append(LogProbabilities(all=values, following=values[:-1].gather(1, ids[0, 1:, None])[:, 0]))
    return found
