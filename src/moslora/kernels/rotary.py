"""Attention with rotary positions, RoPE (arXiv 2104.09864): over rows, q and k are turned by their places' angles,

    (x₁, x₂) → (x₁ ∘ cos − x₂ ∘ sin, x₂ ∘ cos + x₁ ∘ sin)   with x₁ and x₂ the halves of a head

Replaces transformers' own, which takes five passes over q and k each and seven over their gradients. Here it is three,
on every device, or one for both by `moslora.kernels.liger`; equal but for rounding.
"""

from typing import Any

import torch
from torch import Tensor, nn

from moslora.kernels import liger
from moslora.kernels.attention import Remembering, attend_in_rows
from moslora.kernels.exchange import is_plain
from moslora.kernels.rows import Rows


def own_attention(module: Any) -> nn.Module | None:
    """Ours for an attention of plain formula."""
    if is_plain(module, "Attention"):
        return RotaryAttention(module)
    return None


class RotaryAttention(nn.Module):
    """The attention ``plain``, with its modules and numbers. Without rows it computes what that did."""

    def __init__(self, plain: Any) -> None:
        super().__init__()
        self.__dict__.update(plain.__dict__)
        self.without_rows = type(plain).forward
        # Llama's has none, whatever its config says.
        says_window = plain.config if type(plain).__name__ == "MistralAttention" else plain
        self.window = getattr(says_window, "sliding_window", None)

    def forward(self, hidden_states: Tensor, *, rows: Rows | Remembering | None = None, **others: Any) -> Any:
        """Shape ``(1, T, hidden)``, and ``None`` for the weights."""
        own: Any = self
        if rows is None:
            return own.without_rows(self, hidden_states, **others)
        projections = (own.q_proj, own.k_proj, own.v_proj)
        q, k, v = (project(hidden_states).unflatten(-1, (-1, own.head_dim)) for project in projections)
        if hasattr(self, "q_norm"):
            q = own.q_norm(q)
            k = own.k_norm(k)
        cos, sin = others["position_embeddings"]
        q, k = Turned.apply(q, k, cos, sin)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out, _ = attend_in_rows(self, q, k, v, None, rows=rows, scaling=own.scaling, sliding_window=self.window)
        return own.o_proj(out.flatten(2)), None


class Turned(torch.autograd.Function):
    """q and k, ``(1, T, heads, size)``; cos and sin ``(1, T, size)``, of equal halves. The gradient is turned back."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return _turn(q, k, cos, sin, back=False)

    @staticmethod
    def backward(ctx: Any, d_q: Tensor, d_k: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        d_q, d_k = _turn(d_q, d_k, cos, sin, back=True)
        return d_q, d_k, None, None


def _turn(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, back: bool) -> tuple[Tensor, Tensor]:
    if liger.takes(q):  # in place: q and k come from the layers, their gradients from attention, for this alone
        torch.autograd.graph.increment_version((q, k))
        return torch.ops.moslora.rope(q.detach(), k.detach(), cos, sin, back)
    cos = cos.unsqueeze(2)
    sin1, sin2 = sin.unsqueeze(2).chunk(2, -1)
    sign = -1 if back else 1
    turned_q = q * cos
    turned_k = k * cos
    for x, turned in ((q, turned_q), (k, turned_k)):
        x1, x2 = x.chunk(2, -1)
        turned1, turned2 = turned.chunk(2, -1)
        turned1.addcmul_(x2, sin1, value=-sign)
        turned2.addcmul_(x1, sin2, value=sign)
    return turned_q, turned_k
