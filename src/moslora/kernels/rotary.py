"""Attention with rotary positions, RoPE (arXiv 2104.09864): q and k are rotated by the angles of their positions,

    (x₁, x₂) → (x₁ ∘ cos − x₂ ∘ sin, x₂ ∘ cos + x₁ ∘ sin)   with x₁ and x₂ the halves of a head

It replaces transformers' own, which takes five passes over q and k each and seven over their gradients. This takes
three on every device, or one for both by `moslora.kernels.liger`. Results differ only by rounding.
"""

from typing import Any

import torch
from torch import Tensor, nn

from moslora.kernels import liger
from moslora.kernels.attention import attend_in_rows
from moslora.kernels.cache import CachedPass
from moslora.kernels.exchange import is_plain
from moslora.kernels.rows import Rows


def own_attention(module: Any) -> nn.Module | None:
    """Return a :class:`RotaryAttention` for an attention with the plain formula, ``None`` for any other module."""
    if is_plain(module, "Attention"):
        return RotaryAttention(module)
    return None


class RotaryAttention(nn.Module):
    """Attention with the modules and settings of ``plain``, which still computes passes that are not packed rows."""

    def __init__(self, plain: Any) -> None:
        super().__init__()
        self.__dict__.update(plain.__dict__)
        self.without_rows = type(plain).forward
        # LlamaAttention has no window, whatever its config says.
        window_of = plain.config if type(plain).__name__ == "MistralAttention" else plain
        self.window = getattr(window_of, "sliding_window", None)

    def forward(self, hidden_states: Tensor, *, rows: Rows | CachedPass | None = None, **others: Any) -> Any:
        """Return the attention's output, ``(1, T, hidden)`` like ``hidden_states``, and ``None`` for the weights."""
        own: Any = self
        if rows is None:
            return own.without_rows(self, hidden_states, **others)
        projections = (own.q_proj, own.k_proj, own.v_proj)
        q, k, v = (project(hidden_states).unflatten(-1, (-1, own.head_dim)) for project in projections)
        if hasattr(self, "q_norm"):
            q = own.q_norm(q)
            k = own.k_norm(k)
        cos, sin = others["position_embeddings"]
        q, k = RotaryEmbedding.apply(q, k, cos, sin)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out, _ = attend_in_rows(self, q, k, v, None, rows=rows, scaling=own.scaling, sliding_window=self.window)
        return own.o_proj(out.flatten(2)), None


class RotaryEmbedding(torch.autograd.Function):
    """q and k ``(1, T, heads, size)``, rotated by cos and sin ``(1, T, size)``, whose halves are equal. The gradient is
    rotated back."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return _rotate(q, k, cos, sin, back=False)

    @staticmethod
    def backward(ctx: Any, d_q: Tensor, d_k: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        d_q, d_k = _rotate(d_q, d_k, cos, sin, back=True)
        return d_q, d_k, None, None


def _rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, back: bool) -> tuple[Tensor, Tensor]:
    if liger.supports(q):  # in place, because nothing else reads q and k or their gradients
        torch.autograd.graph.increment_version((q, k))
        return torch.ops.moslora.rope(q.detach(), k.detach(), cos, sin, back)
    cos = cos.unsqueeze(2)
    sin1, sin2 = sin.unsqueeze(2).chunk(2, -1)
    sign = -1 if back else 1
    rotated_q = q * cos
    rotated_k = k * cos
    for x, rotated in ((q, rotated_q), (k, rotated_k)):
        x1, x2 = x.chunk(2, -1)
        rotated1, rotated2 = rotated.chunk(2, -1)
        rotated1.addcmul_(x2, sin1, value=-sign)
        rotated2.addcmul_(x1, sin2, value=sign)
    return rotated_q, rotated_k
