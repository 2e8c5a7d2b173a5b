"""Whether two models compute the same: their log-probabilities on a few short texts."""

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
    """Of one prompt: ``all`` of shape (length, vocabulary); ``following``, of the tokens that follow, (length - 1,)."""

    all: Tensor
    following: Tensor


@torch.inference_mode()
def log_probabilities(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[LogProbabilities]:
    """Of :data:`PROMPTS`, one by one."""
    pack_nothing(model)  # a few short texts are not worth a second copy of all weights
    encoder = Encoder(tokenizer, max_length=None)
    found = []
    for prompt in PROMPTS:
        ids = torch.tensor([encoder.encode(prompt, "", eos=False).ids])
        values = model(input_ids=ids).logits[0].float().log_softmax(-1)
        found.append(LogProbabilities(all=values, following=values[:-1].gather(1, ids[0, 1:, None])[:, 0]))
    return found


@dataclass(frozen=True)
class Reference:
    """The log-probabilities that a merged model's are compared with.

    Attributes:
        base: without the adapter.
        adapted: the adapter model.
        expected: the adapter on the weights that it is merged into; ``adapted`` unless the base is quantised.
    """

    base: list[LogProbabilities]
    adapted: list[LogProbabilities]
    expected: list[LogProbabilities]


@dataclass(frozen=True)
class Proof:
    """Merged against adapter model, over all positions of :data:`PROMPTS`.

    Attributes:
        mean_error: mean |Δ log p| of the token that follows, in nats.
        max_error: the largest.
        kl: mean KL(adapter ‖ merged), in nats.
        flips: share of positions where another token is the likeliest.
        rounding: the merge's own part of ``mean_error``: against :attr:`Reference.expected`. The rest comes from the
            base's quantisation.
        effect: mean |Δ log p| between the base and the adapter model, which the merge has to preserve.
        ratio: ‖ΔW‖ / ‖W‖, the mean over layers; a small ΔW is lost in the merge's rounding.
        dtype: of both models.
        quantization: of the adapter model's base.
        onto: the weights of a quantised base that the adapter was merged into.
    """

    mean_error: float
    max_error: float
    kl: float
    flips: float
    rounding: float
    effect: float
    ratio: float
    dtype: DType
    quantization: str | None
    onto: Onto

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
            f" {self.effect:.2g} (‖ΔW‖/‖W‖ {self.ratio:.2%}){warning}"
        )


def compare(
    merged: list[LogProbabilities], reference: Reference, *, ratio: float, section: ModelSection, onto: Onto
) -> Proof:
    """Measures what the merge changed, and what the adapter had changed.

    Raises:
        MosloraError: the rounding error is beyond :data:`TOLERANCE`.
    """
    base, adapted, expected, found = (
        torch.cat([prompt.following for prompt in model])
        for model in (reference.base, reference.adapted, reference.expected, merged)
    )
    all_adapted, all_merged = (torch.cat([prompt.all for prompt in model]) for model in (reference.adapted, merged))
    proof = Proof(
        mean_error=float((adapted - found).abs().mean()),
        max_error=float((adapted - found).abs().max()),
        kl=float((all_adapted.exp() * (all_adapted - all_merged)).sum(-1).mean()),
        flips=float((all_adapted.argmax(-1) != all_merged.argmax(-1)).float().mean()),
        rounding=float((expected - found).abs().mean()),
        effect=float((adapted - base).abs().mean()),
        ratio=ratio,
        dtype=section.dtype,
        quantization=section.quantization,
        onto=onto,
    )
    if not proof.rounding <= TOLERANCE[proof.dtype]:
        raise MosloraError(f"{proof}: above the tolerance of {TOLERANCE[proof.dtype]:g}; nothing was written")
    return proof
