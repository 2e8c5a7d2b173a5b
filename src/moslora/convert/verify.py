"""Compares a merged model with its adapter model: weight by weight, and by log-probabilities on a few short texts."""

from collections.abc import Mapping
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

BEYOND = 5e-4
"""Largest accepted :attr:`Proof.beyond`; the order of float32 sums makes a tenth of it at most."""

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


def weight_sums(written: Tensor, *, exact: Tensor, plain: Tensor) -> Tensor:
    """Σ|W' − R|, Σ|ΔW|, Σ|W|, ⟨W' − W, ΔW⟩ and ‖ΔW‖² over a layer's weight, or some rows of it: float64, ``(5,)``.

    W' is ``written``; ``exact`` is E = W + ΔW in float32 and ``plain`` W; R is E rounded once to the dtype of W'. An
    error ε of E makes an entry round to the next number with probability |ε| / (their distance). So Σ|W' − R| is about
    Σ|ε| in every dtype, also where every ε is far below the rounding; a sum of squares would not be.
    """
    delta = exact - plain
    beyond = written.float() - exact.to(written.dtype).float()
    moved = (written.float() - plain) * delta
    sums = [beyond.abs(), delta.abs(), plain.abs(), moved, delta.square()]
    return torch.stack([value.sum(dtype=torch.float64) for value in sums])


@dataclass(frozen=True)
class Proof:
    """Merged against adapter model: the adapted weights, and over all positions of :data:`PROMPTS`, in nats."""

    mean_error: float  # mean |Δ log p| of the token that follows
    max_error: float  # the largest
    kl: float  # mean KL(adapter ‖ merged)
    flips: float  # share of positions where another token is the likeliest
    rounding: float  # the merge's own part of mean_error; the rest comes from the base's quantisation
    effect: float  # mean |Δ log p| between the base and the adapter model, which the merge has to preserve
    layer: str  # whose weight is farthest from W + ΔW, rounded once
    beyond: float  # its distance, in sums of absolute values, as a share of ΔW: what rounding does not explain
    kept: float  # how much of ΔW is in the rounded weights: ⟨W' − W, ΔW⟩ / ‖ΔW‖² over all layers
    dtype: DType  # of both models
    quantization: str | None  # of the adapter model's base
    onto: Onto  # the weights of a quantised base that the adapter was merged into

    def __str__(self) -> str:
        """The numbers, and in the last line the verdict."""
        return f"{self.numbers}\n{self.verdict}"

    @property
    def numbers(self) -> str:
        models = f"merged against adapter model in {self.dtype}"
        rounding = ""
        if self.quantization is not None:
            models = f"merged onto {self.onto} weights, against the adapter model on {self.quantization}, {self.dtype}"
            rounding = f" (by the merge's rounding {self.rounding:.2g})"
        return (
            f"{models}: mean |Δ log p| {self.mean_error:.2g}{rounding}, largest {self.max_error:.2g}, KL {self.kl:.2g}"
            f" nats, another likeliest token at {self.flips:.1%} of the positions; the adapter itself moves them by"
            f" {self.effect:.2g}"
        )

    @property
    def fault(self) -> str | None:
        """What rounding does not explain."""
        if not self.beyond <= BEYOND:  # also if it is not a number
            return f"{self.layer} misses {self.beyond:.2g} of its ΔW, above the tolerance of {BEYOND:g}"
        if not self.rounding <= (most := TOLERANCE[self.dtype]):
            return f"mean |Δ log p| {self.rounding:.2g} is above the tolerance of {most:g}"
        return None

    @property
    def verdict(self) -> str:
        if self.fault:
            return f"worse than rounding to {self.dtype} explains: {self.fault}"
        warning = DROWNED if not self.rounding < self.effect else MISPLACED if not self.mean_error < self.effect else ""
        return (
            f"as close as rounding to {self.dtype} allows: the adapted weights are W + ΔW rounded once (but for"
            f" {self.beyond:.1g} of ΔW), which keeps {self.kept:.1%} of ΔW and moves log p by"
            f" {self.rounding / max(self.effect, 1e-12):.2g} of what the adapter does{warning}"
        )


def compare(
    merged: LogProbabilities,
    *,
    base: LogProbabilities,
    adapted: LogProbabilities,
    expected: LogProbabilities,
    weights: Mapping[str, Tensor],
    section: ModelSection,
    onto: Onto,
) -> Proof:
    """Measures what the merge changed, and what the adapter had changed.

    ``expected`` is the adapter on the weights that it is merged into: ``adapted``, unless the base is quantised.
    ``weights`` has the :func:`weight_sums` of each adapted layer.

    Raises:
        MosloraError: :attr:`Proof.beyond` or :attr:`Proof.rounding` is more than rounding explains.
    """
    error = (adapted.following - merged.following).abs()
    # Beside a ΔW that is next to nothing the rounding of float32, 6e-8 of W, is large.
    beyond = {name: float(off / (delta + 1e-3 * size)) for name, (off, delta, size, *_) in weights.items()}
    layer = max(beyond, key=lambda name: beyond[name])
    *_, along, square = sum(weights.values(), torch.zeros(5))
    proof = Proof(
        mean_error=float(error.mean()),
        max_error=float(error.max()),
        kl=float((adapted.all.exp() * (adapted.all - merged.all)).sum(-1).mean()),
        flips=float((adapted.all.argmax(-1) != merged.all.argmax(-1)).float().mean()),
        rounding=float((expected.following - merged.following).abs().mean()),
        effect=float((adapted.following - base.following).abs().mean()),
        layer=layer,
        beyond=beyond[layer],
        kept=float(along / square),
        dtype=section.dtype,
        quantization=section.quantization,
        onto=onto,
    )
    if proof.fault:
        raise MosloraError(f"{proof.numbers}; {proof.verdict}; nothing was written")
    return proof
