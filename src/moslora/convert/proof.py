"""Proof of a merge: comparison of merged and adapter model by weights, and by log-probabilities of a few texts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.choices import DType, Onto
from moslora.errors import MosloraError
from moslora.kernels.exchange import exchange
from moslora.kernels.linear import own_linear, pack_nothing

PROMPTS = (
    "Question: Which force pulls a dropped stone to the ground?\nAnswer: gravity",
    "The kettle was still warm, so she knew that somebody had made tea.",
    "Below is an instruction that describes a task.\n\n### Response:\nthe correct answer is answer2",
    "Q: Robin carried the groceries for an old neighbour. How would Robin be described?\nA: kind",
)
"""Texts that models are compared on, with and without the formats' markers."""

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.2, "float16": 0.03}
"""Largest accepted :attr:`Proof.rounding` by dtype, in nats."""

MISSED = 5e-4
"""Largest accepted Σ|W' − R| / (Σ|ΔW| + Σ|W| / 1000) of a layer, see `weight_sums`. The order of float32 sums makes a
tenth of it at most."""


@torch.inference_mode()
def log_probabilities(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """log p of each token of :data:`PROMPTS` except the first of each prompt, shape ``(tokens,)``."""
    exchange(model, own_linear)  # a processor without bfloat16 is slow with transformers' own
    pack_nothing(model)  # a few short texts are not worth a second copy of all weights
    log_p = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        values = model(input_ids=ids).logits[0].float().log_softmax(-1)
        log_p.append(values[:-1].gather(1, ids[0, 1:, None])[:, 0])
    return torch.cat(log_p)


class Measured(NamedTuple):
    """`log_probabilities` of the base and the adapter model before a merge, and `weight_sums` of each merged weight."""

    base: Tensor
    adapted: Tensor  # adapter model
    expected: Tensor  # adapter on the weights that it is merged into: differs from ``adapted`` over a quantised base
    weights: Mapping[str, Tensor]


def weight_sums(merged: Tensor, *, exact: Tensor, plain: Tensor) -> Tensor:
    """Σ|W' − R|, Σ|ΔW| and Σ|W| over a layer's weight, or some rows of it: float64, ``(3,)``.

    W' is ``merged``; ``exact`` is E = W + ΔW in float32 and ``plain`` W; R is E rounded once to the dtype of W'. An
    error ε of E makes an entry round to the next number with probability |ε| / (their distance). So Σ|W' − R| is about
    Σ|ε| in every dtype, also where every ε is far below the rounding; a sum of squares would not be.
    """
    missed = merged.float() - exact.to(merged.dtype).float()
    return torch.stack([value.abs().sum(dtype=torch.float64) for value in (missed, exact - plain, plain)])


@dataclass(frozen=True)
class Proof:
    """Distances between a merged model and the base with its adapter, in mean |Δ log p| over :data:`PROMPTS`, nats.

    The weights of the merged model have been checked before.
    """

    mean_error: float  # between the adapter model and the merged model
    rounding: float  # part of it that the merge causes; the rest comes from the base's quantisation
    effect: float  # between the base and the adapter model, which the merge has to preserve
    dtype: DType  # of both models
    quantization: str | None  # of the adapter model's base
    onto: Onto  # the weights of a quantised base that the adapter was merged into

    def __str__(self) -> str:
        """Text with the numbers, and the verdict in the last line."""
        if self.quantization is None:
            models = f"merged against adapter model in {self.dtype}"
            by_rounding = ""
        else:
            models = f"merged onto {self.onto} weights, against the adapter model on {self.quantization}, {self.dtype}"
            by_rounding = f" (by the merge's rounding {self.rounding:.2g})"
        share = self.rounding / max(self.effect, 1e-12)
        return (
            f"{models}: mean |Δ log p| {self.mean_error:.2g}{by_rounding}; the adapter moves it by {self.effect:.2g}"
            f" nats\nas close as rounding to {self.dtype} allows: the weights are W + ΔW, rounded once, which"
            f" moves log p by {share:.2g} of what the adapter does{self._warning()}"
        )

    def _warning(self) -> str:
        """Warning if rounding or quantisation hides the adapter; otherwise empty."""
        if not self.rounding < self.effect / 2:
            return "; WARNING: that is half of it or more: merge with --dtype float32, or keep the adapter"
        if not self.mean_error < self.effect:
            return "; WARNING: quantisation changes as much as the adapter: keep it, or measure both values of --onto"
        return ""


def prove(measured: Measured, merged: Tensor, *, dtype: DType, quantization: str | None, onto: Onto) -> Proof:
    """Compare a written model with its adapter model.

    ``merged`` is the written model's `log_probabilities` ``(tokens,)``; other arguments are as in :class:`Proof`.

    Raises:
        MosloraError: a layer's weight, or the mean |Δ log p|, is farther off than rounding explains.
    """
    # Relative to a very small ΔW, float32's rounding, 6e-8 of W, is large.
    shares = {name: float(missed / (delta + 1e-3 * size)) for name, (missed, delta, size) in measured.weights.items()}
    wrong = {name: share for name, share in shares.items() if not share <= MISSED}  # also NaN
    faults = []
    if wrong:
        worst = max(wrong, key=lambda name: wrong[name])
        faults.append(f"{worst} is off by {wrong[worst]:.2g} of its ΔW, above the tolerance of {MISSED:g}")
    rounding = float((measured.expected - merged).abs().mean())
    most = TOLERANCE[dtype]
    if not rounding <= most:
        faults.append(f"mean |Δ log p| {rounding:.2g} is above the tolerance of {most:g}")
    if faults:
        raise MosloraError(
            f"the merged model is worse than rounding to {dtype} explains: {'; '.join(faults)}; nothing was written"
        )
    return Proof(
        mean_error=float((measured.adapted - merged).abs().mean()),
        rounding=rounding,
        effect=float((measured.adapted - measured.base).abs().mean()),
        dtype=dtype,
        quantization=quantization,
        onto=onto,
    )
