"""The mixers of a recipe, one section for each kind: the options of the class of that kind in `moslora.adapters`."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from .fields import Section


class IdentityMixer(Section):
    """M = I: plain LoRA (arXiv 2106.09685)."""

    kind: Literal["identity"]
    """Which mixer stands between the factors."""


class ButterflyMixer(Section):
    """M = 1_{k×k} ⊗ I_{r/k}, fixed: two-subspace mixing for k = 2 (arXiv 2406.11909). ΔW has rank r/k."""

    kind: Literal["butterfly"]
    """Which mixer stands between the factors."""

    blocks: int = Field(default=2, ge=2)
    """Number k of subspaces; it divides the rank."""

    normalize: bool = False
    """Divide M by k, which makes it an orthogonal projector."""


class HadamardMixer(Section):
    """M = H_k/√k ⊗ I_{r/k}, fixed: a butterfly with signs, orthogonal, so that ΔW keeps its rank."""

    kind: Literal["hadamard"]
    """Which mixer stands between the factors."""

    blocks: int = Field(default=2, ge=2)
    """Number k of subspaces, a power of two; it divides the rank."""


class KroneckerMixer(Section):
    """M = G ⊗ I_{r/k} with a learned G (k × k): the butterfly's pattern with weights of its own."""

    kind: Literal["kronecker"]
    """Which mixer stands between the factors."""

    blocks: int = Field(default=4, ge=2)
    """Number k of subspaces; it divides the rank."""


class DenseMixer(Section):
    """A dense M (rank_out × rank): MoSLoRA (arXiv 2406.11909) and, with a zero start, FLoRA (2405.14739)."""

    kind: Literal["dense"]
    """Which mixer stands between the factors."""

    init: Literal["kaiming", "orthogonal", "identity", "xavier", "normal", "zeros"] = "kaiming"
    """How M starts. B starts at zero, except with `zeros`, where M does and B is drawn instead."""

    train: Literal["learned", "frozen", "folded"] = "learned"
    """`learned` with A and B; as controls `frozen`, or `folded` into A at the start, where M becomes I."""


class DiagonalMixer(Section):
    """M = diag(e), learned: AdaLoRA (arXiv 2303.10512). `training.rank_budget` drops entries."""

    kind: Literal["diagonal"]
    """Which mixer stands between the factors."""

    orthogonality: NonNegativeFloat = 0.1
    """Weight of the penalty that pulls A's rows and B's columns towards orthonormality."""


class InputSplitMixer(Section):
    """Experts that each read their own slice of the input: ΔW = [B₁A₁ | … | BₖAₖ]."""

    kind: Literal["input-split"]
    """Which mixer stands between the factors."""

    blocks: int = Field(default=2, ge=2)
    """Number k of slices; it divides the rank and the layer's input features."""


class TokenGateMixer(Section):
    """LoRA experts with a gate for each token: LoRAMoE (arXiv 2312.09979); top-k: MoLA (2402.08562). Not mergeable."""

    kind: Literal["token-gate"]
    """Which mixer stands between the factors."""

    experts: int = Field(default=4, ge=2)
    """Number k of experts of rank / k each."""

    top_k: PositiveInt | None = None
    """Experts that a token is given to; null for all, by their weights."""

    balance: NonNegativeFloat = 0.0
    """Weight of the penalty on an uneven load."""


class GateInsideMixer(Section):
    """One gate on the experts of A and one on those of B (arXiv 2406.11909, section 3). Not mergeable."""

    kind: Literal["gate-inside"]
    """Which mixer stands between the factors."""

    experts: int = Field(default=4, ge=2)
    """Number k of experts of rank / k each."""


class TaskGateMixer(Section):
    """LoRA experts weighted by the row's task: MOELoRA (arXiv 2310.18339). Mergeable for a named task."""

    kind: Literal["task-gate"]
    """Which mixer stands between the factors."""

    experts: int = Field(default=4, ge=2)
    """Number k of experts of rank / k each."""

    embedding_size: PositiveInt = 64
    """Length of a task's learned embedding, which the gate reads."""


Mixer = (
    IdentityMixer
    | ButterflyMixer
    | HadamardMixer
    | KroneckerMixer
    | DenseMixer
    | DiagonalMixer
    | InputSplitMixer
    | TokenGateMixer
    | GateInsideMixer
    | TaskGateMixer
)
"""Any of them, told apart by `kind`."""
