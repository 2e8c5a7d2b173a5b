"""How far a merged model agrees with the adapter model, on a few fixed prompts."""

from dataclasses import dataclass

import torch
from torch import Tensor

from moslora.errors import MosloraError
from moslora.probe import LogProbabilities

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.2, "float16": 0.03}
"""Largest accepted error by rounding of a merged model's log-probabilities, in nats and per position on average."""

DROWNED = "; WARNING: that is no more than the rounding of the merge, so keep the adapter or merge with --dtype float32"
MISPLACED = (
    "; WARNING: the base's quantisation moves them as much, so measure both ways of merging, or keep the adapter"
)


@dataclass(frozen=True)
class Proof:
    """Merged against adapter model, over all positions of :data:`moslora.probe.PROMPTS`.

    Attributes:
        mean_error: mean |Δ log p| of the token that follows, in nats.
        max_error: the largest.
        kl: mean KL(adapter ‖ merged), in nats.
        flips: share of positions where another token is the likeliest.
        rounding: the part of ``mean_error`` that is the merge's own: against the adapter beside the same weights,
            unquantised. The rest comes of the base's quantisation.
        effect: mean |Δ log p| between the base and the adapter model: what there was to preserve.
        ratio: ‖ΔW‖ / ‖W‖, the mean over layers; small ones drown in the rounding of the merge.
        dtype: of both models.
        quantization: of the adapter model's base; ``None`` for none.
        onto: a name of :data:`ONTO`.
    """

    mean_error: float
    max_error: float
    kl: float
    flips: float
    rounding: float
    effect: float
    ratio: float
    dtype: str
    quantization: str | None
    onto: str

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
    *,
    base: list[LogProbabilities],
    adapted: list[LogProbabilities],
    expected: list[LogProbabilities],
    merged: list[LogProbabilities],
    ratio: float,
    dtype: str,
    quantization: str | None,
    onto: str,
) -> Proof:
    """Measures what the merge changed, and what the adapter had changed.

    Raises:
        MosloraError: the mean error against ``expected``, which differs by rounding only, is beyond
            :data:`TOLERANCE`.
    """

    def differences(some: list[LogProbabilities], others: list[LogProbabilities]) -> Tensor:
        return torch.cat([(one.following - other.following).abs() for one, other in zip(some, others, strict=True)])

    errors = differences(adapted, merged)
    pairs = list(zip(adapted, merged, strict=True))
    proof = Proof(
        mean_error=float(errors.mean()),
        max_error=float(errors.max()),
        kl=float(torch.cat([(one.all.exp() * (one.all - other.all)).sum(-1) for one, other in pairs]).mean()),
        flips=float(torch.cat([one.all.argmax(-1) != other.all.argmax(-1) for one, other in pairs]).float().mean()),
        rounding=float(differences(expected, merged).mean()),
        effect=float(differences(adapted, base).mean()),
        ratio=ratio,
        dtype=dtype,
        quantization=quantization,
        onto=onto,
    )
    if not proof.rounding <= TOLERANCE[dtype]:
        raise MosloraError(f"{proof}: beyond the tolerance of {TOLERANCE[dtype]:g}; nothing was written")
    return proof
