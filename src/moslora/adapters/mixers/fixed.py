"""Mixers that are fixed by their definition: nothing is learned."""

import torch
from torch import Tensor

from moslora.adapters.mixers.base import Mixer, in_blocks
from moslora.mixer_options import ButterflyOptions, HadamardOptions, IdentityOptions, InputSplitOptions, Options


class IdentityMixer(Mixer):
    """M = I: plain LoRA (arXiv 2106.09685).

    A mixture of LoRA experts without a gate is also plain LoRA: with A = [A₁; …; Aₖ] and B = [B₁ | … | Bₖ], Σᵢ Bᵢ Aᵢ =
    B A.
    """

    options_type: type[Options] = IdentityOptions

    def matrix(self) -> Tensor:
        return torch.eye(self.rank_in)

    def fold(self, lora_a: Tensor, lora_b: Tensor) -> tuple[Tensor, Tensor]:
        return lora_a, lora_b


class InputSplitMixer(IdentityMixer):
    """M = I with a block-diagonal A: every expert reads its own slice of the input.

    x = [x¹ … xᵏ], and ΔW = s · [B₁A₁ | … | BₖAₖ] with Aᵢ of shape (r/k, in/k) and Bᵢ of shape (out, r/k): both
    the input and r are split. A has in · r/k numbers, a k-th of LoRA's. If all Bᵢ were the same matrix, it would be
    exactly LoRA of rank r/k.
    """

    options_type = InputSplitOptions
    options: InputSplitOptions

    def shape_of_a(self, in_features: int) -> tuple[int, int]:
        slices = self.options.blocks
        if in_features % slices:
            raise ValueError(f"{in_features} input features do not split into {slices} equal slices")
        return self.rank_in, in_features // slices

    def fold(self, lora_a: Tensor, lora_b: Tensor) -> tuple[Tensor, Tensor]:
        """A ``(r, in_features)`` with zeros outside the diagonal blocks, and B."""
        return torch.block_diag(*lora_a.chunk(self.options.blocks)), lora_b


class ButterflyMixer(Mixer):
    """M = 1ₖₖ ⊗ I: every expert's A is combined with every expert's B (two-subspace mixing for k = 2).

    With A = [A₁; …; Aₖ] and B = [B₁ | … | Bₖ] the product is (B₁ + … + Bₖ)(A₁ + … + Aₖ), so the update has
    rank r/k, and training equals that of LoRA of rank r/k at k times the learning rate (same s).
    Source: arXiv 2406.11909, section 3, "butterfly factor". Normalised it is M / k, an orthogonal projector: 1/√k on
    each side.
    """

    options_type = ButterflyOptions
    options: ButterflyOptions

    @property
    def gain(self) -> float:
        return 1 / self.options.blocks if self.options.normalize else 1.0

    def matrix(self) -> Tensor:
        ones = torch.ones(self.options.blocks, self.options.blocks, dtype=torch.float64)  # 1/3 is another in float32
        return in_blocks(ones, self.rank_in) * self.gain

    def fold(self, lora_a: Tensor, lora_b: Tensor) -> tuple[Tensor, Tensor]:
        """Pair (A₁ + … + Aₖ, B₁ + … + Bₖ) of rank r/k; the first is multiplied by 1/k if M is normalised."""
        a = lora_a.unflatten(0, (self.options.blocks, -1)).sum(0) * self.gain
        return a, lora_b.unflatten(1, (self.options.blocks, -1)).sum(1)


class HadamardMixer(Mixer):
    """M = Hₖ/√k ⊗ I, [[I, I], [I, −I]]/√2 for k = 2: a butterfly that mixes and keeps the rank.

    Hₖ is Sylvester's matrix of order k. M is orthogonal, so under plain gradient descent this is LoRA started from
    M · A, and under Adam it is not.
    """

    options_type = HadamardOptions
    signs: Tensor

    def __init__(self, options: HadamardOptions, *, rank: int) -> None:
        super().__init__(options, rank=rank)
        self.blocks = options.blocks
        signs = torch.ones(1, 1)
        while len(signs) < self.blocks:
            signs = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), signs)
        # Only the signs, exact in every dtype; 1/√k is multiplied in the dtype of the product.
        self.register_buffer("signs", signs, persistent=False)
        self.gain = self.blocks**-0.5

    def matrix(self) -> Tensor:
        return in_blocks(self.signs, self.rank_in) * self.gain

    def fold(self, lora_a: Tensor, lora_b: Tensor) -> tuple[Tensor, Tensor]:
        mixed = self.signs.to(lora_a) @ lora_a.reshape(self.blocks, -1)
        return mixed.view_as(lora_a) * self.gain, lora_b
