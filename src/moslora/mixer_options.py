"""Options of the mixers with their ranges, and the combinations of them that cannot work.

Recipes and the constructors of `moslora.adapters.mixers` share them. `kind` names the mixer's class.
"""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field, NonNegativeFloat, PositiveInt

from moslora.schema import Size, StrictModel

Conflicts = Iterator[tuple[str, str]]
"""Pairs of text: the dotted keys of options that cannot go together, the best one to change first; the fault and its
fix."""

Blocks = Annotated[int, Field(ge=2, description="Number k of blocks, which divides the rank.")]
Experts = Annotated[int, Field(ge=2, description="Number k of experts of rank / k each.")]
DenseInit = Literal["kaiming", "orthogonal", "identity", "xavier", "normal", "zeros", "near-zero"]
DenseTraining = Literal["learned", "frozen", "folded"]

WELL_CONDITIONED: tuple[DenseInit, ...] = ("orthogonal", "identity")
"""Initialisations of a dense mixer whose inverse is no larger than the mixer."""

AT_ZERO: tuple[DenseInit, ...] = ("zeros", "near-zero")
"""Initialisations of a dense mixer with which ΔW starts at zero or next to it, whatever B is."""


class Options(StrictModel):
    """Options of one mixer, and the properties of M that follow from them."""

    kind: str
    routes: ClassVar[bool] = False  # whether M depends on the token or the task
    is_invertible: ClassVar[bool] = False  # whether M has an inverse at the start, with these options or with others
    parts: ClassVar[str] = ""  # the option, if any, by which the rank is divided

    @property
    def starts_at_zero(self) -> bool:
        """Whether M starts at zero or near it, so that B does not."""
        return False

    @property
    def starts_well_conditioned(self) -> bool:
        """Whether M starts with an inverse that is no larger than M."""
        return self.is_invertible

    @property
    def is_balanced(self) -> bool:
        """Whether each forward pass adds a penalty over its own rows."""
        return False

    def conflicts(self, *, rank: int, rank_out: int | None) -> Conflicts:
        """List the combinations of options and of the adapter's ranks that cannot work."""
        if rank_out not in (None, rank):
            yield "rank_out rank mixer.kind", _must_be_square(self.kind, rank)
        if self.parts:
            count = getattr(self, self.parts)
            if rank % count:
                yield f"mixer.{self.parts} rank", f"rank = {rank} is not divisible by {self.parts} = {count}"


class BlockOptions(Options):
    """Options of a mixer whose rank is split into k parts of equal size."""

    parts: ClassVar[str] = "blocks"

    blocks: Blocks = 2


class GateOptions(Options):
    """Options of a gate on equal experts."""

    routes: ClassVar[bool] = True
    parts: ClassVar[str] = "experts"

    experts: Experts = 4


class IdentityOptions(Options):
    """M = I: plain LoRA (arXiv 2106.09685)."""

    kind: Literal["identity"] = "identity"
    is_invertible: ClassVar[bool] = True


class ButterflyOptions(BlockOptions):
    """M = 1_{k×k} ⊗ I_{r/k}, fixed: two-subspace mixing for k = 2 (arXiv 2406.11909). ΔW has rank r/k."""

    kind: Literal["butterfly"] = "butterfly"

    normalize: bool = False
    """Divide M by k: it becomes an orthogonal projector."""


class HadamardOptions(BlockOptions):
    """M = H_k/√k ⊗ I_{r/k}, fixed, k a power of two: a butterfly with signs. M is orthogonal, so ΔW keeps its rank."""

    kind: Literal["hadamard"] = "hadamard"
    is_invertible: ClassVar[bool] = True

    def conflicts(self, *, rank: int, rank_out: int | None) -> Conflicts:
        if self.blocks.bit_count() == 1:
            yield from super().conflicts(rank=rank, rank_out=rank_out)
        else:
            yield "mixer.blocks", "there is no Hadamard matrix of this order; choose a power of two, such as 2 or 4"


class KroneckerOptions(BlockOptions):
    """M = G ⊗ I_{r/k} with a learned G (k × k): the butterfly's pattern with learned weights."""

    kind: Literal["kronecker"] = "kronecker"
    is_invertible: ClassVar[bool] = True

    blocks: Blocks = 4


class DenseOptions(Options):
    """A dense M (rank_out × rank): MoSLoRA (arXiv 2406.11909); with a zero start, FLoRA (2405.14739) and LoRA-XS
    (2405.17604)."""

    kind: Literal["dense"] = "dense"
    is_invertible: ClassVar[bool] = True

    init: DenseInit = "kaiming"
    """Start of M. B starts at zero, but random with `zeros` and `near-zero` (N(0, 1e-5²))."""

    train: DenseTraining = "learned"
    """`learned` with A and B. Controls: `frozen`, or `folded` into A at the start (M = I)."""

    @property
    def starts_at_zero(self) -> bool:
        return self.init in AT_ZERO

    @property
    def starts_well_conditioned(self) -> bool:
        return self.init in WELL_CONDITIONED

    def conflicts(self, *, rank: int, rank_out: int | None) -> Conflicts:
        if self.train == "folded" and rank_out not in (None, rank):
            yield "rank_out rank mixer.train", _must_be_square(self.train, rank)
        if self.starts_at_zero and self.train != "learned":
            # Frozen, B·0·A stays zero, and A and B get no gradient. Folded, A would start at zero and B at random:
            # LoRA with its factors exchanged, which is not a control for any mixer.
            fix = "set another init, or train: learned"
            yield "mixer.init mixer.train", f"a {self.train} mixer of zeros learns nothing; {fix}"


class DiagonalOptions(Options):
    """M = diag(e), learned: AdaLoRA (arXiv 2303.10512). `training.rank_budget` drops entries."""

    kind: Literal["diagonal"] = "diagonal"

    orthogonality: NonNegativeFloat = 0.1
    """Weight of the penalty that pulls A's rows and B's columns towards orthonormality."""

    @property
    def starts_at_zero(self) -> bool:
        return True


class InputSplitOptions(BlockOptions):
    """Experts that each read a slice of the input: ΔW = [B₁A₁ | … | BₖAₖ]. k must divide the rank and the number of
    input features."""

    kind: Literal["input-split"] = "input-split"


class TokenGateOptions(GateOptions):
    """LoRA experts with a gate for each token: LoRAMoE (arXiv 2312.09979); top-k: MoLA (2402.08562). Not mergeable."""

    kind: Literal["token-gate"] = "token-gate"

    top_k: PositiveInt | None = None
    """Experts per token; null for all."""

    balance: NonNegativeFloat = 0.0
    """Weight of the penalty on an uneven load."""

    @property
    def is_balanced(self) -> bool:
        return self.balance > 0

    def conflicts(self, *, rank: int, rank_out: int | None) -> Conflicts:
        yield from super().conflicts(rank=rank, rank_out=rank_out)
        if self.top_k is not None and not 2 <= self.top_k < self.experts:
            # With top_k = 1 the renormalised weight is always 1, and the router gets no gradient.
            bounds = f"top_k must be at least 2 and less than experts = {self.experts}"
            yield "mixer.top_k mixer.experts", f"{bounds}, or null for all experts"


class GateInsideOptions(GateOptions):
    """One gate on the experts of A and one on those of B (arXiv 2406.11909, section 3). Not mergeable."""

    kind: Literal["gate-inside"] = "gate-inside"


class TaskGateOptions(GateOptions):
    """LoRA experts weighted by the row's task: MOELoRA (arXiv 2310.18339). Mergeable for a named task."""

    kind: Literal["task-gate"] = "task-gate"

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

INVERTIBLE = tuple(options.model_fields["kind"].default for options in get_args(MixerOptions) if options.is_invertible)
"""Kinds of mixers that are invertible at the start."""


def _must_be_square(what: str, rank: int) -> str:
    return f"{what} mixers are square; remove rank_out, or set it to rank = {rank}"
