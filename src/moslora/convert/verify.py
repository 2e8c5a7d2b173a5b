"""Compares a merged model with its adapter model: weight by weight, and by log-probabilities on a few short texts."""

from collections.abc import Mapping
from dataclasses import dataclass

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

MISSED = 5e-4
"""Largest accepted Σ|W' − R| / (Σ|ΔW| + Σ|W| / 1000) of a layer, see `weight_sums`. The order of float32 sums makes a
tenth of it at most."""


@torch.inference_mode()
def log_probabilities(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """log p of each token of :data:`PROMPTS` but the first of each, which ``model`` reads one by one: ``(tokens,)``."""
    pack_nothing(model)  # a few short texts are not worth a second copy of all weights
    encoder = Encoder(tokenizer, max_length=None)
    found = []
    for prompt in PROMPTS:
        ids = torch.tensor([encoder.encode(prompt, "", eos=False).ids])
        values = model(input_ids=ids).logits[0].float().log_softmax(-1)
        found.append(values[:-1].gather(1, ids[0, 1:, None])[:, 0])
    return torch.cat(found)


def weight_sums(written: Tensor, *, exact: Tensor, plain: Tensor) -> Tensor:
    """Σ|W' − R|, Σ|ΔW| and Σ|W| over a layer's weight, or some rows of it: float64, ``(3,)``.

    W' is ``written``; ``exact`` is E = W + ΔW in float32 and ``plain`` W; R is E rounded once to the dtype of W'. An
    error ε of E makes an entry round to the next number with probability |ε| / (their distance). So Σ|W' − R| is about
    Σ|ε| in every dtype, also where every ε is far below the rounding; a sum of squares would not be.
    """
    missed = written.float() - exact.to(written.dtype).float()
    return torch.stack([value.abs().sum(dtype=torch.float64) for value in (missed, exact - plain, plain)])


@dataclass(frozen=True)
class Proof:
    """A merged model, whose weights are right, against its adapter model: mean |Δ log p| over :data:`PROMPTS`, nats."""

    mean_error: float  # between the adapter and the merged model
    rounding: float  # the merge's own part of it; the rest comes from the base's quantisation
    effect: float  # between the base and the adapter model, which the merge has to preserve
    dtype: DType  # of both models
    quantization: str | None  # of the adapter model's base
    onto: Onto  # the weights of a quantised base that the adapter was merged into

    def __str__(self) -> str:
        """The numbers, and in the last line the verdict."""
        models, rounding, warning = f"merged against adapter model in {self.dtype}", "", ""
        if self.quantization is not None:
            models = f"merged onto {self.onto} weights, against the adapter model on {self.quantization}, {self.dtype}"
            rounding = f" (by the merge's rounding {self.rounding:.2g})"
        if not self.rounding < self.effect:
            warning = "; WARNING: rounding does no less: keep the adapter, or merge with --dtype float32"
        elif not self.mean_error < self.effect:
            warning = "; WARNING: quantisation does no less: measure both values of --onto, or keep the adapter"
        share = self.rounding / max(self.effect, 1e-12)
        numbers = f"{models}: mean |Δ log p| {self.mean_error:.2g}{rounding}; the adapter moves it by {self.effect:.2g}"
        return (
            f"{numbers} nats\nas close as rounding to {self.dtype} allows: the adapted weights are W + ΔW rounded once,"
            f" which moves log p by {share:.2g} of what the adapter does{warning}"
        )


def compare(
    merged: Tensor,
    *,
    base: Tensor,
    adapted: Tensor,
    expected: Tensor,
    weights: Mapping[str, Tensor],
    section: ModelSection,
    onto: Onto,
) -> Proof:
    """Measures what the merge changed, and what the adapter had changed, in the `log_probabilities` of four models.

    ``expected`` is the adapter on the weights that it is merged into: ``adapted``, unless the base is quantised.
    ``weights`` has the :func:`weight_sums` of each adapted layer.

    Raises:
        MosloraError: a layer's weight, or the mean |Δ log p|, is farther off than rounding explains.
    """
    error, most = float((expected - merged).abs().mean()), TOLERANCE[section.dtype]
    # Beside a ΔW that is next to nothing the rounding of float32, 6e-8 of W, is large.
    shares = {name: float(off / (delta + 1e-3 * size)) for name, (off, delta, size) in weights.items()}
    faults = [] if error <= most else [f"mean |Δ log p| {error:.2g} is above the tolerance of {most:g}"]
    if wrong := {name: share for name, share in shares.items() if not share <= MISSED}:  # also what is not a number
        layer = max(wrong, key=lambda name: wrong[name])
        faults.insert(0, f"{layer} misses {wrong[layer]:.2g} of its ΔW, above the tolerance of {MISSED:g}")
    if faults:
        raise MosloraError(f"worse than rounding to {section.dtype} explains: {'; '.join(faults)}; nothing was written")
    return Proof(
        mean_error=float((adapted - merged).abs().mean()),
        rounding=error,
        effect=float((adapted - base).abs().mean()),
        dtype=section.dtype,
        quantization=section.quantization,
        onto=onto,
    )
