"""The mixers: every method here is ΔW = s · B · M · A, and M is the only thing that differs.

Convention of the whole package (PyTorch): ``h = x Aᵀ`` has shape ``(..., rank_in)`` and the mixer maps it
to ``u = h Mᵀ`` of shape ``(..., rank_out)``. The MoSLoRA paper (arXiv 2406.11909) writes row vectors, so its
W is Mᵀ here; its released code stores ``lora_AB.weight``, which *is* M.
"""

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DenseInit = Literal["kaiming", "orthogonal", "identity", "xavier", "normal", "zeros"]
DenseTraining = Literal["learned", "frozen", "folded"]


class Mixer(nn.Module, ABC):
    """A linear map M between the two factors of an adapter; it owns nothing but rank-sized state.

    Attributes:
        rank_in: columns of M, rows of ``lora_a``.
        rank_out: rows of M, columns of ``lora_b``.
        zero_at_init: whether M starts at zero. Then ``lora_b`` must not (and the other way round).
        folds_at_init: whether M is multiplied into ``lora_a`` once, right after the draw, and then gone.
    """

    zero_at_init = False
    folds_at_init = False

    def __init__(self, *, rank: int, rank_out: int | None = None) -> None:
        super().__init__()
        self.rank_in = rank
        self.rank_out = rank if rank_out is None else rank_out

    @abstractmethod
    def forward(self, h: Tensor) -> Tensor:
        """u = h Mᵀ.

        Args:
            h: shape ``(..., rank_in)``, in the compute dtype.

        Returns:
            Shape ``(..., rank_out)``, in the dtype of ``h``.
        """

    @abstractmethod
    def matrix(self) -> Tensor:
        """M itself, float32 (float64 stays), shape ``(rank_out, rank_in)``."""

    def fold(self, lora_a: Tensor, lora_b: Tensor) -> tuple[Tensor, Tensor]:
        """The plain LoRA pair with the same product: B · M · A = B · (M · A), exactly.

        Args:
            lora_a: shape ``(rank_in, in_features)``.
            lora_b: shape ``(out_features, rank_out)``.

        Returns:
            ``(a, b)`` of shapes ``(r, in_features)`` and ``(out_features, r)``, r ≤ rank_out.
        """
        return self.matrix().to(lora_a) @ lora_a, lora_b

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws M anew. Nothing to draw where M is fixed by its definition."""

    def extra_repr(self) -> str:
        return f"rank_in={self.rank_in}, rank_out={self.rank_out}"


class IdentityMixer(Mixer):
    """M = I: plain LoRA (arXiv 2106.09685)."""

    def __init__(self, *, rank: int, rank_out: int | None = None) -> None:
        super().__init__(rank=rank, rank_out=rank_out)
        if self.rank_out != self.rank_in:
            raise ValueError(f"the identity mixer is square, but rank_out is {rank_out} and rank {rank}")

    def forward(self, h: Tensor) -> Tensor:
        return h

    def matrix(self) -> Tensor:
        return torch.eye(self.rank_in)

    def fold(self, lora_a: Tensor, lora_b: Tensor) -> tuple[Tensor, Tensor]:
        return lora_a, lora_b


class ButterflyMixer(Mixer):
    """M = 1ₖₖ ⊗ I: every expert's A meets every expert's B (two-subspace mixing for k = 2).

    With A = [A₁; …; Aₖ] and B = [B₁ | … | Bₖ] the product is (B₁ + … + Bₖ)(A₁ + … + Aₖ), so the update has
    rank r/k, and training it is training LoRA of rank r/k at k times the learning rate (same s).
    Source: arXiv 2406.11909, section 3, "butterfly factor".

    Args:
        rank: r, a multiple of ``blocks``.
        blocks: k, the number of subspaces.
        normalize: M / k, an orthogonal projector: the released code's 1/√k on each side.
    """

    def __init__(self, *, rank: int, rank_out: int | None = None, blocks: int = 2, normalize: bool = False) -> None:
        super().__init__(rank=rank, rank_out=rank_out)
        if self.rank_out != self.rank_in:
            raise ValueError(f"the butterfly mixer is square, but rank_out is {rank_out} and rank {rank}")
        if blocks < 2 or rank % blocks:
            raise ValueError(f"rank {rank} does not split into {blocks} blocks of equal size (two or more)")
        self.blocks = blocks
        self.gain = 1 / blocks if normalize else 1.0

    def forward(self, h: Tensor) -> Tensor:
        mixed = h.unflatten(-1, (self.blocks, -1)).sum(-2) * self.gain  # (..., r/k)
        return mixed.repeat(*(1,) * (h.dim() - 1), self.blocks)

    def matrix(self) -> Tensor:
        ones = torch.ones(self.blocks, self.blocks)
        return torch.kron(ones, torch.eye(self.rank_in // self.blocks)) * self.gain

    def fold(self, lora_a: Tensor, lora_b: Tensor) -> tuple[Tensor, Tensor]:
        """(A₁ + … + Aₖ, B₁ + … + Bₖ) of rank r/k; the gain goes into A."""
        a = lora_a.unflatten(0, (self.blocks, -1)).sum(0) * self.gain
        return a, lora_b.unflatten(1, (self.blocks, -1)).sum(1)


class DenseMixer(Mixer):
    """M dense, square or rectangular: MoSLoRA (arXiv 2406.11909); starting at zero, FLoRA's 2-D core (2405.14739).

    The starting values and their gain E‖Mh‖²/‖h‖²: ``kaiming`` U(±1/√rank_in), as released, 1/3;
    ``orthogonal`` and ``identity`` 1; ``xavier`` about 1; ``normal`` N(0, 1) rank_out; ``zeros`` 0.

    Args:
        rank: rank_in.
        rank_out: rows of M; ``None`` for a square one.
        init: how M starts.
        train: ``learned`` trains M; ``frozen`` keeps its first value; ``folded`` multiplies the first value
            into ``lora_a`` and continues as LoRA. The last two are the controls that tell what learning adds.

    Raises:
        ValueError: a zero mixer that is not learned, or a rectangular one to be folded away.
    """

    def __init__(
        self,
        *,
        rank: int,
        rank_out: int | None = None,
        init: DenseInit = "kaiming",
        train: DenseTraining = "learned",
    ) -> None:
        super().__init__(rank=rank, rank_out=rank_out)
        if init == "zeros" and train != "learned":
            raise ValueError(f"a mixer that starts at zero and is {train} stays zero: nothing would be learned")
        self.init = init
        self.zero_at_init = init == "zeros"
        self.folds_at_init = train == "folded"
        self.weight = nn.Parameter(torch.empty(self.rank_out, self.rank_in), requires_grad=train == "learned")

    def forward(self, h: Tensor) -> Tensor:
        # The small matrix is cast, never the activations: M keeps a float32 master because a step of
        # 3e-4 on an entry near 1 is lost in bfloat16, whose spacing there is 7.8e-3.
        return F.linear(h, self.weight.to(h.dtype))

    def matrix(self) -> Tensor:
        return self.weight

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        with torch.no_grad():
            match self.init:
                case "kaiming":
                    nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5), generator=generator)
                case "orthogonal":
                    nn.init.orthogonal_(self.weight, generator=generator)
                case "identity":
                    nn.init.eye_(self.weight)
                case "xavier":
                    nn.init.xavier_uniform_(self.weight, generator=generator)
                case "normal":
                    nn.init.normal_(self.weight, generator=generator)
                case "zeros":
                    nn.init.zeros_(self.weight)


MIXERS: dict[str, type[Mixer]] = {
    "identity": IdentityMixer,
    "butterfly": ButterflyMixer,
    "dense": DenseMixer,
}
"""The registry: the name a recipe writes as ``adapter.mixer.kind``, and the class it means."""
