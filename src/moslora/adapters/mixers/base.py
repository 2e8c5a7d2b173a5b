"""Base class of mixers. PyTorch's convention holds: ``h = x Aᵀ`` has shape ``(..., rank_in)``, and the mixer maps it to
``u = h Mᵀ = x (M A)ᵀ`` of shape ``(..., rank_out)``. The MoSLoRA paper (arXiv 2406.11909) writes row vectors, so its W
is Mᵀ here; its released code stores ``lora_AB.weight``, which *is* M.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moslora.adapters.context import Context
from moslora.mixer_options import Options


class NotMergeable(ValueError):
    """Error of an adapter without a single matrix M, because M depends on the input or on an unnamed task."""


class Mixer(nn.Module, ABC):
    """Linear map M between an adapter's two factors. A subclass defines ``matrix``, and ``forward`` if it routes.

    Its constructor takes its options and ``rank``; also ``rank_out`` if it may be rectangular, ``in_features`` of the
    layer if it reads the layer's input, and ``tasks`` if it routes by the task.
    """

    options_type: type[Options]
    folds_at_init = False  # whether M is multiplied into lora_a right after the draw and then removed
    factor_std: float | None = None  # standard deviation of the normal draw of A (and B if M starts at zero)

    def __init__(self, options: Options, *, rank: int) -> None:
        super().__init__()
        self.options = options
        self.rank_in = rank  # columns of M, rows of lora_a
        self.rank_out = rank  # rows of M, columns of lora_b
        self.context = Context()  # until the mixer is part of a model's adapter

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        """u = h Mᵀ, shape ``(..., rank_out)``, in the dtype of ``h (..., rank_in)``; called if M is not folded into A.

        ``x`` is the layer's input before dropout, shape ``(..., in_features)``; only routers use it.
        """
        return F.linear(h, self.matrix().to(h.dtype))

    @abstractmethod
    def matrix(self) -> Tensor:
        """M in float32 or float64, shape ``(rank_out, rank_in)``.

        Raises:
            NotMergeable: there is no single M.
        """

    def shape_of_a(self, in_features: int) -> tuple[int, int]:
        """Shape of ``lora_a``."""
        return self.rank_in, in_features

    def fold(self, lora_a: Tensor, lora_b: Tensor) -> tuple[Tensor, Tensor]:
        """Plain LoRA pair with the product B · M · A = B · (M · A), exactly.

        ``lora_a`` has the shape ``shape_of_a(in_features)``, ``lora_b`` ``(out_features, rank_out)``. The pair is ``(r,
        in_features)`` and ``(out_features, r)`` with r ≤ rank_out. It must work under ``torch.func.vmap``, which folds
        many layers at once.
        """
        return self.matrix().to(lora_a) @ lora_a, lora_b

    def penalty(self, lora_a: Tensor, lora_b: Tensor) -> Tensor | None:
        """Penalty that the method adds to the loss for this layer, after a forward pass in training: a float32 scalar.

        ``None`` if the method adds none.
        """
        return None

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw M; does nothing if M is fixed by its definition."""


def in_blocks(small: Tensor, rank: int) -> Tensor:
    """G ⊗ I, shape ``(rank, rank)``, with G ``small (k, k)``."""
    return torch.kron(small, small.new_ones(rank // len(small)).diag())


def kaiming(weight: Tensor, generator: torch.Generator | None) -> Tensor:
    """Fill ``weight (rows, columns)`` with U(±1/√columns), the start of ``nn.Linear`` and LoRA."""
    return nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
