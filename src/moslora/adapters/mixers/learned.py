"""Mixers with one learned matrix for all inputs."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from moslora.adapters.mixers.base import Mixer, in_blocks, kaiming
from moslora.mixer_options import DenseInit, DenseOptions, DiagonalOptions, KroneckerOptions

DRAWS: dict[DenseInit, Callable[[Tensor, torch.Generator | None], Tensor]] = {
    "kaiming": kaiming,
    "orthogonal": lambda m, generator: nn.init.orthogonal_(m, generator=generator),
    "identity": lambda m, _: nn.init.eye_(m),
    "xavier": lambda m, generator: nn.init.xavier_uniform_(m, generator=generator),
    "normal": lambda m, generator: nn.init.normal_(m, generator=generator),
    "zeros": lambda m, _: nn.init.zeros_(m),
    # LoRA-XS, arXiv 2405.17604; ``sigma=0.00001`` in its released code
    "near-zero": lambda m, generator: nn.init.normal_(m, std=1e-5, generator=generator),
}


class DenseMixer(Mixer):
    """Dense M, square or rectangular: MoSLoRA (arXiv 2406.11909); FLoRA's 2-D core (2405.14739) if it starts at zero;
    LoRA-XS (2405.17604) if it starts near zero between frozen singular vectors.

    The starting values and their gain E‖Mh‖²/‖h‖²: ``kaiming`` U(±1/√rank_in), as released, 1/3;
    ``orthogonal`` and ``identity`` 1; ``xavier`` about 1; ``normal`` N(0, 1) rank_out; ``zeros`` 0; ``near-zero``
    N(0, 1e-5²) rank_out · 1e-10.

    A ``frozen`` M keeps its first value. A ``folded`` M is multiplied into ``lora_a`` once, right after the draw, and
    training goes on as LoRA. Both are controls that show the effect of learning M.

    Args:
        rank: rank_in.
        rank_out: rows of M; ``None`` for a square M.
    """

    options_type = DenseOptions
    options: DenseOptions

    def __init__(self, options: DenseOptions, *, rank: int, rank_out: int | None) -> None:
        super().__init__(options, rank=rank)
        if rank_out is not None:
            self.rank_out = rank_out
        self.folds_at_init = options.train == "folded"
        # In float32: bfloat16 would lose a step of 3e-4 on an entry near 1, where its spacing is 7.8e-3.
        empty = torch.empty(self.rank_out, self.rank_in, dtype=torch.float32)
        self.weight = nn.Parameter(empty, requires_grad=options.train == "learned")

    def matrix(self) -> Tensor:
        return self.weight

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        DRAWS[self.options.init](self.weight, generator)


class DiagonalMixer(Mixer):
    """M = diag(e), e starting at zero: AdaLoRA's ΔW = P Λ Q with P = B, Λ = M, Q = A (arXiv 2303.10512).

    A and B start as N(0, 0.02²) and are pulled towards orthonormal rows and columns by the penalty

        γ/2 · (‖A Aᵀ − I‖_F + ‖Bᵀ B − I‖_F),

    the plain norm as in the released code (the paper squares it). `moslora.training.budget` decides which entries of e
    stay, and zeroes the others; the scale stays α/r with the r at the start (the released code divides by r + 1e-5, a
    relative 6e-7 at r = 16).

    The option ``orthogonality`` is γ; 0 means no penalty.
    """

    options_type = DiagonalOptions
    options: DiagonalOptions
    factor_std = 0.02

    def __init__(self, options: DiagonalOptions, *, rank: int) -> None:
        super().__init__(options, rank=rank)
        self.weight = nn.Parameter(torch.empty(rank, dtype=torch.float32))

    def matrix(self) -> Tensor:
        return self.weight.diag()

    def penalty(self, lora_a: Tensor, lora_b: Tensor) -> Tensor | None:
        if not self.options.orthogonality:
            return None
        eye = torch.eye(self.rank_in, dtype=lora_a.dtype, device=lora_a.device)
        apart = (lora_a @ lora_a.T - eye).norm() + (lora_b.T @ lora_b - eye).norm()
        return self.options.orthogonality / 2 * apart

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        nn.init.zeros_(self.weight)


class KroneckerMixer(Mixer):
    """M = G ⊗ I with a learned G (k × k): the butterfly's pattern with learned weights.

    Between LoRA (G = I), two-subspace mixing (G all ones) and MoSLoRA, whose M has r² weights instead of k². ``blocks``
    is k, which divides r.
    """

    options_type = KroneckerOptions

    def __init__(self, options: KroneckerOptions, *, rank: int) -> None:
        super().__init__(options, rank=rank)
        self.weight = nn.Parameter(torch.empty(options.blocks, options.blocks, dtype=torch.float32))

    def matrix(self) -> Tensor:
        return in_blocks(self.weight, self.rank_in)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        nn.init.orthogonal_(self.weight, generator=generator)
