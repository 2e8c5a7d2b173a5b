"""The one adapter layer: a frozen linear map and beside it s · B · M · A."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moslora.adapters.mixers import Mixer


class AdapterLinear(nn.Module):
    """y = base(x) + s · B · M · A · dropout(x).

    The base stays a black box (``nn.Linear``, a 4-bit linear, …): it is called, never subclassed, so there is
    one adapter class whatever the base. The factors are kept in float32 and cast to the dtype of ``x`` for
    the product; the activations are never cast up.

    Shapes: ``lora_a (mixer.rank_in, in_features)``, ``lora_b (out_features, mixer.rank_out)``.

    Start (arXiv 2106.09685 section 4.1, microsoft/LoRA): A ~ U(±1/√in_features). B = 0, or, where the mixer
    starts at zero, B ~ U(±1/√rank_out): exactly one of B and M is zero, so ΔW = 0 and gradients flow.

    Args:
        base: the linear map to adapt, with ``in_features`` and ``out_features``. It is frozen here.
        mixer: M.
        scale: s; α/r in LoRA.
        dropout: probability of dropping an entry of ``x`` on the adapter's path.
    """

    def __init__(self, base: nn.Module, *, mixer: Mixer, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.in_features = int(base.in_features)  # type: ignore[arg-type]
        self.out_features = int(base.out_features)  # type: ignore[arg-type]
        self.scale = scale
        self.base = base.requires_grad_(False)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.lora_a = nn.Parameter(torch.empty(mixer.rank_in, self.in_features))
        self.mixer = mixer
        self.lora_b = nn.Parameter(torch.empty(self.out_features, mixer.rank_out))

    def reset_parameters(
        self, generator: torch.Generator | None = None, mixer_generator: torch.Generator | None = None
    ) -> None:
        """Draws the start. M has a generator of its own so that A and B do not depend on the mixer's kind."""
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5), generator=generator)
        if self.mixer.zero_at_init:
            nn.init.kaiming_uniform_(self.lora_b, a=math.sqrt(5), generator=generator)
        else:
            nn.init.zeros_(self.lora_b)
        self.mixer.reset_parameters(mixer_generator)

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(..., in_features)`` to ``(..., out_features)``, in the dtype of the base's output."""
        h = F.linear(self.dropout(x), self.lora_a.to(x.dtype))  # (..., rank_in)
        u = self.mixer(h) * self.scale  # (..., rank_out): the scale where the tensor is smallest
        return self.base(x) + F.linear(u, self.lora_b.to(x.dtype))

    def delta_weight(self) -> Tensor:
        """ΔW = s · B · M · A, shape ``(out_features, in_features)``, in the factors' own dtype (float32)."""
        a, b = self.mixer.fold(self.lora_a, self.lora_b)
        return self.scale * (b @ a)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, scale={self.scale:g}"
