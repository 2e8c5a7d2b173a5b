"""Compares models by their log-probabilities on a few short texts."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.choices import DType, Onto
from moslora.data.encode import Encoder
from moslora.errors import MosloraError
from moslora.kernels.linear import pack_nothing
from moslora.recipe import ModelSection

PROMPTS = (
    "Question: Which force pulls a dropped stone to the ground?\nAnswer: gravity",
    "The kettle was still warm, so she knew that somebody had made tea.",
    "Below is an instruction that describes a task.\n\n### Response:\nthe correct answer is answer2",
    "Q: Robin carried the groceries for an old neighbour. How would Robin be described?\nA: kind",
)
"""The texts that models are compared on, with and without the formats' markers."""

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.2, "float16": 0.03}
"""Largest accepted :attr:`Proof.rounding` by dtype, in nats."""

DROWNED = "; WARNING: no more than the merge's rounding does: keep the adapter, or merge with --dtype float32"
MISPLACED = "; WARNING: no more than the base's quantisation does: measure both values of --onto, or keep the adapter"


class LogProbabilities(NamedTuple):
    """At every position of :data:`PROMPTS`: ``all`` of shape (positions, vocabulary); ``following`` of shape (positions
    but each prompt's last,), of the token that follows."""

    all: Tensor
    following: Tensor


@torch.inference_mode()
def log_probabilities(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> LogProbabilities:
    """log p of ``model``, which reads the prompts one by one."""
    pack_nothing(model)  # a few short texts are not worth a second copy of all weights
    encoder = Encoder(tokenizer, max_length=None)
    found = []
    for prompt in PROMPTS:
        ids = torch.tensor([encoder.encode(prompt, "", eos=False).ids])
        values = model(input_ids=ids).logits[0].float().log_softmax(-1)
        found.append((values, values[:-1].gather(1, ids[0, 1:, None])[:, 0]))
    return LogProbabilities(*map(torch.cat, zip(*found, strict=True)))


@dataclass(frozen=True)
class Proof:
    """Merged against adapter model, over all positions of :data:`PROMPTS`; differences in nats."""

    mean_error: float  # mean |Δ log p| of the token that follows
    max_error: float  # the largest
    kl: float  # mean KL(adapter ‖ merged)
    flips: float  # share of positions where another token is the likeliest
    rounding: float  # the merge's own part of mean_error; the rest comes from the base's quantisation
    effect: float  # mean |Δ log p| between the base and the adapter model, which the merge has to preserve
    dtype: DType  # of both models
    quantization: str | None  # of the adapter model's base
    onto: Onto  # the weights of a quantised base that the adapter was merged into

    def __str__(self) -> str:
        models = f"merged against adapter model in {self.dtype}"
        rounding = ""
        if self.quantization is not None:
            models = f"merged onto {self.onto} weights, against the adapter model on {self.quantization}, {self.dtype}"
            rounding = f" (by the merge's rounding {self.rounding:.2g})"
        warning = DROWNED if not self.rounding < self.effect else MISPLACED if not self.mean_error < self.effect else ""
        return (
            f"{models}: mean |Δ log p| {self.mean_error:.2g}{rounding}, largest {self.max_error:.2g}, KL {self.kl:.2g}"
            f" nats, another likeliest token at {self.flips:.1%} of the positions; the adapter itself moves them by"
            f" {self.effect:.2g}{warning}"
        )


def compare(
    merged: LogProbabilities,
    *,
    base: LogProbabilities,
    adapted: LogProbabilities,
    expected: LogProbabilities,
    section: ModelSection,
    onto: Onto,
) -> Proof:
    """Measures what the merge changed, and what the adapter had changed.

    ``expected`` is the adapter on the weights that it is merged into: ``adapted``, unless the base is quantised.

    Raises:
        MosloraError: the rounding error is beyond :data:`TOLERANCE`.
    """
    error = (adapted.following - merged.following).abs()
    proof = Proof(
        mean_error=float(error.mean()),
        max_error=float(error.max()),
        kl=float((adapted.all.exp() * (adapted.all - merged.all)).sum(-1).mean()),
        flips=float((adapted.all.argmax(-1) != merged.all.argmax(-1)).float().mean()),
        rounding=float((expected.following - merged.following).abs().mean()),
        effect=float((adapted.following - base.following).abs().mean()),
        dtype=section.dtype,
        quantization=section.quantization,
        onto=onto,
    )
    if not proof.rounding <= TOLERANCE[proof.dtype]:
        raise MosloraError(f"{proof}: above the tolerance of {TOLERANCE[proof.dtype]:g}; nothing was written")
    return proof
