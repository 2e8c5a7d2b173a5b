"""DoRA's magnitude: the learned length of each row of the adapted weight."""

import torch
from torch import Tensor, nn


class Magnitude(nn.Module):
    """Magnitude m of W' = m ∘ (W + ΔW) / ‖W + ΔW‖, row by row; m starts as ‖W‖ (DoRA, arXiv 2402.09353, equation 5).

    The gradient treats the norm as a constant (section 4.3 of the paper). The norm is computed without W + ΔW, from

        ‖wᵢ + δᵢ‖² = ‖wᵢ‖² + 2 wᵢ·δᵢ + ‖δᵢ‖²,   δᵢ = s · bᵢ · a,

    whose middle term needs only W · aᵀ, r columns that the frozen base computes in its own precision. The norm is set
    to at least √eps · ‖wᵢ‖, because rounding hides smaller values.

    Shape: ``weight`` m is ``(out_features,)``.
    """

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, dtype=torch.float32))
        self.register_buffer("squared_norms", torch.empty(out_features, dtype=torch.float32), persistent=False)

    squared_norms: Tensor

    @torch.no_grad()
    def measure(self, weight: Tensor) -> None:
        """Store ‖wᵢ‖² for each row wᵢ of the base's ``weight (out_features, in_features)``."""
        self.squared_norms.copy_(weight.to(self.squared_norms.dtype).square().sum(1))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set m = ‖W‖; :meth:`measure` must have been called."""
        self.weight.copy_(self.squared_norms.sqrt())

    def forward(self, *, a: Tensor, b: Tensor, base_of_a: Tensor, scale: float) -> Tensor:
        """m / ‖W + s · b · a‖, shape ``(out_features,)``; ``a (r, in_features)``, ``b (out_features, r)``.

        ``base_of_a`` is a · Wᵀ, shape ``(r, out_features)``; ``scale`` is s.
        """
        with torch.no_grad():
            cross = (base_of_a.T.to(b) * b).sum(1)
            delta = ((b @ (a @ a.T)) * b).sum(1)
            squares = self.squared_norms + 2 * scale * cross + scale**2 * delta
            kind = torch.finfo(squares.dtype)
            # A row of zeros has m = 0; its gain must be 0, not 0/0.
            norms = squares.maximum(kind.eps * self.squared_norms).clamp_min(kind.tiny).sqrt()
        return self.weight / norms
