"""Mixers that route: LoRA experts weighted by the input or by the task, M(x) = G(x) ⊗ I.

The rank is split among k experts, A = [A₁; …; Aₖ] and B = [B₁ | … | Bₖ] with r/k rows and columns each, so that all
methods have the same rank and the same scale s = α/r. (LoRAMoE and MoLA count r per expert: their r and α are
rank k · r and alpha k · α here.) All experts run at once: one product x Aᵀ, a weight for each block of it, one product
with Bᵀ. There is no loop over experts and no sorting of tokens.

A router reads x before dropout, as in the released code of LoRAMoE and MoLA. Its softmax is in float32 (or float64).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moslora.adapters.mixers.base import Mixer, NotMergeable, in_blocks, kaiming
from moslora.mixer_options import GateInsideOptions, GateOptions, TaskGateOptions, TokenGateOptions


class Gate(Mixer):
    """Base class of gates over k experts of rank r/k. ``context`` describes the batch."""

    def __init__(self, options: GateOptions, *, rank: int) -> None:
        super().__init__(options, rank=rank)
        self.experts = options.experts

    def _blocks(self, h: Tensor) -> Tensor:
        """h ``(..., r)`` as one block for each expert, ``(..., k, r/k)``."""
        return h.unflatten(-1, (self.experts, -1))


class TokenGateMixer(Gate):
    """M(x) = diag(p(x)) ⊗ I with p(x) = softmax(R x): a mixture of LoRA experts with a gate for each token.

    Dense uses all experts (LoRAMoE, arXiv 2312.09979); ``top_k`` only those with the largest weights, scaled to sum to
    one (MoLA, arXiv 2402.08562). The penalty balances the load. With Pᵢ the mean of pᵢ over the micro-batch's tokens
    and fᵢ expert i's share of their top-k places, it is β · Varᵢ(Pᵢ) / Meanᵢ(Pᵢ)² if dense (LoRAMoE's, without its
    task types), and β · k · Σᵢ fᵢ Pᵢ with ``top_k`` (Switch, arXiv 2101.03961, section 2.2).

    Shape: the router ``weight`` R is ``(experts, in_features)``.
    """

    options_type = TokenGateOptions

    def __init__(self, options: TokenGateOptions, *, rank: int, in_features: int) -> None:
        super().__init__(options, rank=rank)
        self.top_k = options.top_k
        self.balance = options.balance  # β
        self.weight = nn.Parameter(torch.empty(self.experts, in_features, dtype=torch.float32))

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        p = _softmax(F.linear(x, self.weight.to(x.dtype)))  # (..., k)
        gates = p
        if self.top_k is not None:  # the largest, scaled to sum to one, and zeros
            values, places = p.topk(self.top_k, dim=-1)
            gates = torch.zeros_like(p).scatter(-1, places, values / values.sum(-1, keepdim=True))
        if self.training and self.balance:
            self.context.keep_penalty(self, self.balance * self._imbalance(p, gates))
        return (self._blocks(h) * gates.to(h.dtype).unsqueeze(-1)).flatten(-2)

    def matrix(self) -> Tensor:
        raise NotMergeable("a token gate: M depends on the input x, so every token has its own")

    def penalty(self, lora_a: Tensor, lora_b: Tensor) -> Tensor | None:
        if not (self.training and self.balance):
            return None
        penalty = self.context.take_penalty(self)
        if penalty is None:
            raise RuntimeError("no penalty: call describe_batch before each pass, and adapter_penalty once after it")
        if torch.is_grad_enabled() and not penalty.requires_grad:
            raise RuntimeError("the penalty has no gradient for the routers; checkpoint with use_reentrant=False")
        return penalty

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        kaiming(self.weight, generator)

    def _imbalance(self, p: Tensor, gates: Tensor) -> Tensor:
        """Imbalance of the experts, a scalar, without padding; ``p`` and ``gates`` are ``(..., k)``."""
        mean = self._mean(p)
        if self.top_k is None:
            return mean.var() / mean.mean().square()
        share = self._mean((gates > 0).to(p.dtype)) / self.top_k
        return self.experts * (share * mean).sum()

    def _mean(self, of_tokens: Tensor) -> Tensor:
        """Mean over the tokens that are not padding, from ``(..., k)`` to ``(k,)``.

        Padding is zeroed rather than indexed, which would wait for the device to count the tokens.
        """
        rows = of_tokens.reshape(-1, self.experts)
        if self.context.tokens is None:
            return rows.mean(0)
        tokens = self.context.tokens.reshape(-1)
        return rows.masked_fill(~tokens[:, None], 0).sum(0) / tokens.sum()


class GateInsideMixer(Gate):
    """M(x) = g_B(x) g_A(x)ᵀ ⊗ I: a gate on the experts of A and another on those of B.

    ΔW(x) = s Σᵢⱼ g_B,ⱼ g_A,ᵢ Bⱼ Aᵢ: the mixture moved inside LoRA, the starting point of the MoSLoRA paper (arXiv
    2406.11909, section 3). With all gates at one it is the butterfly. There is no released code with these gates.

    Shape: ``router_a`` and ``router_b`` are ``(experts, in_features)``.
    """

    options_type = GateInsideOptions

    def __init__(self, options: GateInsideOptions, *, rank: int, in_features: int) -> None:
        super().__init__(options, rank=rank)
        self.router_a = nn.Parameter(torch.empty(self.experts, in_features, dtype=torch.float32))
        self.router_b = nn.Parameter(torch.empty(self.experts, in_features, dtype=torch.float32))

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        routers = torch.cat([self.router_a, self.router_b]).to(x.dtype)
        gates = _softmax(F.linear(x, routers).unflatten(-1, (2, -1))).to(h.dtype)  # (..., 2, k)
        mixed = gates[..., :1, :] @ self._blocks(h)  # (..., 1, r/k)
        return (gates[..., 1, :].unsqueeze(-1) * mixed).flatten(-2)

    def matrix(self) -> Tensor:
        raise NotMergeable("gates on A and B: M depends on the input x, so every token has its own")

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        kaiming(self.router_a, generator)
        kaiming(self.router_b, generator)


class TaskGateMixer(Gate):
    """M(task) = diag(softmax(G e_task)) ⊗ I: experts weighted by the task alone (MOELoRA, arXiv 2310.18339).

    Once the task is named M is one matrix, and the adapter merges. A starts as N(0, 0.01²), as in the released code.

    Shapes: ``embedding`` is ``(tasks + 1, embedding_size)``, ``weight`` G ``(experts, embedding_size)``.

    Args:
        tasks: names of the tasks; task i has number i, and rows without a task have the number after the last.
    """

    options_type = TaskGateOptions
    factor_std = 0.01

    def __init__(self, options: TaskGateOptions, *, rank: int, tasks: Sequence[str]) -> None:
        super().__init__(options, rank=rank)
        size = options.embedding_size
        self.task_names = tuple(tasks)
        self.embedding = nn.Parameter(torch.empty(len(tasks) + 1, size, dtype=torch.float32))
        self.weight = nn.Parameter(torch.empty(self.experts, size, dtype=torch.float32))

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        gates = self._gates().to(h.dtype)
        while gates.dim() < h.dim():
            gates = gates.unsqueeze(-2)
        return (self._blocks(h) * gates.unsqueeze(-1)).flatten(-2)

    def matrix(self) -> Tensor:
        gates = self._gates()
        if gates.numel() > self.experts:
            raise NotMergeable("a task gate: M depends on the task, and a batch of several tasks was named")
        return in_blocks(gates[0].diag(), self.rank_in)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        nn.init.normal_(self.embedding, generator=generator)
        kaiming(self.weight, generator)

    def _gates(self) -> Tensor:
        """Gates of the batch's tasks, ``(batch or 1, k)`` or ``(batch, length, k)``."""
        tasks = self.context.tasks
        if tasks is None:
            raise NotMergeable("a task gate: M depends on the task, and none was named")
        of_tasks = F.linear(self.embedding, self.weight).softmax(-1)  # (tasks + 1, k)
        if tasks.is_floating_point():  # a weight of each task
            return tasks @ of_tasks
        return F.embedding(tasks, of_tasks)


def _softmax(logits: Tensor) -> Tensor:
    """Softmax over the last dimension, in float32 or wider."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)
