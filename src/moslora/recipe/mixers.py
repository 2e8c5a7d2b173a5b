"""The options of the mixers. `kind` names the mixer, a class of `moslora.adapters`."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from .fields import Section, Size

Blocks = Annotated[int, Field(ge=2, description="Number k of blocks; it divides the rank.")]
Experts = Annotated[int, Field(ge=2, description="Number k of experts of rank / k each.")]


class IdentityOptions(Section):
    """M = I: plain LoRA (arXiv 2106.09685)."""

    kind: Literal["identity"] = "identity"


class ButterflyOptions(Section):
    """M = 1_{k×k} ⊗ I_{r/k}, fixed: two-subspace mixing for k = 2 (arXiv 2406.11909). ΔW has rank r/k."""

    kind: Literal["butterfly"] = "butterfly"
    blocks: Blocks = 2

    normalize: bool = False
    """Divide M by k, which makes it an orthogonal projector."""


class HadamardOptions(Section):
    """M = H_k/√k ⊗ I_{r/k}, fixed, k a power of two: a butterfly with signs, orthogonal, so that ΔW keeps its rank."""

    kind: Literal["hadamard"] = "hadamard"
    blocks: Blocks = 2


class KroneckerOptions(Section):
    """M = G ⊗ I_{r/k} with a learned G (k × k): the butterfly's pattern with learned weights."""

    kind: Literal["kronecker"] = "kronecker"
    blocks: Blocks = 4


class DenseOptions(Section):
    """A dense M (rank_out × rank): MoSLoRA (arXiv 2406.11909); with a zero start, FLoRA (2405.14739) and LoRA-XS
    (2405.17604)."""

    kind: Literal["dense"] = "dense"

    init: Literal["kaiming", "orthogonal", "identity", "xavier", "normal", "zeros", "near-zero"] = "kaiming"
    """Start of M. B starts at zero, except with `zeros` and `near-zero`, N(0, 1e-5²): then B is random."""

    train: Literal["learned", "frozen", "folded"] = "learned"
    """`learned` with A and B; as controls `frozen`, or `folded` into A at the start, so that M = I."""


class DiagonalOptions(Section):
    """M = diag(e), learned: AdaLoRA (arXiv 2303.10512). `training.rank_budget` drops entries."""

    kind: Literal["diagonal"] = "diagonal"

    orthogonality: NonNegativeFloat = 0.1
    """Weight of the penalty that pulls A's rows and B's columns towards orthonormality."""


class InputSplitOptions(Section):
    """Experts that each read one slice of the input: ΔW = [B₁A₁ | … | BₖAₖ]. k also divides the input features."""

    kind: Literal["input-split"] = "input-split"
    blocks: Blocks = 2


class TokenGateOptions(Section):
    """LoRA experts with a gate for each token: LoRAMoE (arXiv 2312.09979); top-k: MoLA (2402.08562). Not mergeable."""

    kind: Literal["token-gate"] = "token-gate"
    experts: Experts = 4

    top_k: PositiveInt | None = None
    """Experts per token; null for all, weighted by the gate."""

    balance: NonNegativeFloat = 0.0
    """Weight of the penalty on an uneven load."""


class GateInsideOptions(Section):
    """One gate on the experts of A and one on those of B (arXiv 2406.11909, section 3). Not mergeable."""

    kind: Literal["gate-inside"] = "gate-inside"
    experts: Experts = 4


class TaskGateOptions(Section):
    """LoRA experts weighted by the row's task: MOELoRA (arXiv 2310.18339). Mergeable for a named task."""

    kind: Literal["task-gate"] = "task-gate"
    experts: Experts = 4

    embedding_size: Size = 64
    """Size of the learned task embedding, the gate's input."""


MixerOptions = (
    IdentityOptions
    | ButterflyOptions
    | HadamardOptions
    | KroneckerOptions
    | DenseOptions
    | DiagonalOptions
    | InputSplitOptions
    | TokenGateOptions
    | GateInsideOptions
    | TaskGateOptions
)
"""Any mixer's options, selected by `kind`."""
