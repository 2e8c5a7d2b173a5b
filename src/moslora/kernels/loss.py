"""Label loss and token log-probabilities from hidden states h and the output layer's weight W.

The logits of all positions are never in memory together.

    log p(y) = z[y] − log Σ exp z,   z = h Wᵀ
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from moslora.kernels.linear import product
from moslora.kernels.plain import disabled_kernels
from moslora.kernels.rows import send
from moslora.kernels.vocabulary import exact_log_sum, exact_logits, label_loss, pieces, sizes


def sum_of_losses(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Label loss Σ_i −log p(y_i), a scalar in float32 or wider, with a gradient for h.

    ``hidden`` is ``(N, H)``, ``weight`` ``(V, H)``, ``labels`` int64 ``(N,)``.
    """
    if "loss" in disabled_kernels():
        return plain_loss(hidden, weight, labels)
    loss: Tensor = ChunkedLoss.apply(hidden, weight, labels)
    return loss


def plain_loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Label loss by torch from the logits of all positions; arguments as in :func:`sum_of_losses`."""
    return F.cross_entropy(_logits(hidden, weight), labels, reduction="sum")


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    return F.linear(hidden, weight).to(torch.promote_types(hidden.dtype, torch.float32))


class ChunkedLoss(torch.autograd.Function):
    """Label loss Σ_i (log Σ exp z_i − z_i[y_i]) with z_i = h_i Wᵀ and a frozen W, for some positions at a time.

    The gradient is computed along with the loss, so that logits are freed before those of the next positions.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        """Label loss, a float32 scalar; ``hidden`` is ``(N, H)``, ``weight`` ``(V, H)``, ``labels`` int64 ``(N,)``."""
        ctx.gradient = torch.empty_like(hidden)
        positions, _ = sizes(len(hidden), len(weight), weight.device)
        compute = _by_pieces if weight.device.type == "cpu" else label_loss
        losses = []
        chunks = zip(hidden.split(positions), labels.split(positions), ctx.gradient.split(positions), strict=True)
        for states, of_chunk, gradient in chunks:
            losses.append(compute(states, weight, of_chunk, gradient if ctx.needs_input_grad[0] else None))
        return sum(losses[1:], start=losses[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.gradient * gradient.to(ctx.gradient.dtype), None, None


def _by_pieces(states: Tensor, weight: Tensor, labels: Tensor, gradient: Tensor | None) -> Tensor:
    """Label loss of a CPU, one piece of the vocabulary at a time; arguments as in
    `moslora.kernels.vocabulary.label_loss`.

    The gradient is Σ_tokens p W − W[y]. With q the softmax within a piece and s the piece's share of the whole, it is
    Σ_pieces s (q − e_y) W − (1 − s_y) W[y]: a label's 1 is subtracted within its piece.
    """
    _, tokens = sizes(len(states), len(weight), weight.device)
    exact = exact_logits(states, weight, labels)
    sums = []  # log Σ exp z of each piece
    rounded = []  # z[y] of each piece, or −∞
    means = []  # mean of W under p of each piece
    for piece in pieces(states, weight, torch.arange(len(states)), labels):
        sums.append(piece.log_sum)
        rounded.append(piece.of_targets)
        if gradient is not None:
            means.append(product(piece.p_minus_one_hot(labels[:, None]).to(states.dtype), piece.weight.T))
    log_sums = torch.cat(sums, 1)
    total = exact_log_sum(log_sums.logsumexp(1), torch.stack(rounded).amax(0), exact, states.dtype)
    if gradient is not None:
        gradient.zero_()
        shares = (log_sums - total[:, None]).exp()
        for mean, share in zip(means, shares.to(gradient.dtype).split(1, 1), strict=True):
            gradient.addcmul_(mean, share)
        others = shares.scatter(1, labels[:, None] // tokens, 0).sum(1, keepdim=True)  # 1 − s_y
        gradient.addcmul_(weight.index_select(0, labels), others.to(gradient.dtype), value=-1)
    return total.sum() - exact.sum()


def log_probabilities(hidden: Tensor, weight: Tensor, places: Sequence[int], targets: Sequence[int]) -> Tensor:
    """Log-probabilities log softmax(z) of the targets in nats, never above 0, float32 of shape ``(P,)``.

    z = h · Wᵀ is computed in W's dtype, but the target's own logit in float32, also in the sum over the vocabulary.

    Args:
        hidden: h, shape ``(T, H)``.
        weight: W, shape ``(V, H)``.
        places: P row numbers of h; repeated ones are computed once.
        targets: P token ids.
    """
    if "loss" in disabled_kernels():
        return plain_log_probabilities(hidden, weight, places, targets)
    distinct = {place: number for number, place in enumerate(dict.fromkeys(places))}
    states = hidden.index_select(0, send(list(distinct), hidden.device)).to(weight.dtype)  # (≤ P, H)
    rows = send([distinct[place] for place in places], hidden.device)  # (P,), row numbers of states
    wanted = send(targets, hidden.device)
    positions, _ = sizes(len(states), len(weight), weight.device)
    log_sums = []
    rounded = []  # the targets' logits of each piece, or −∞
    for number, part in enumerate(states.split(positions)):
        in_part = wanted.where(rows // positions == number, -1)  # −1 is in no piece
        its_rows = (rows % positions).clamp(max=len(part) - 1)
        of_pieces = []
        for piece in pieces(part, weight, its_rows, in_part):
            of_pieces.append(piece.log_sum)
            rounded.append(piece.of_targets)
        log_sums.append(torch.cat(of_pieces, 1).logsumexp(1))
    log_sum = torch.cat(log_sums).index_select(0, rows)
    exact = exact_logits(states.index_select(0, rows), weight, wanted)
    return (exact - exact_log_sum(log_sum, torch.stack(rounded).amax(0), exact, states.dtype)).float()


def plain_log_probabilities(hidden: Tensor, weight: Tensor, places: Sequence[int], targets: Sequence[int]) -> Tensor:
    """Log-probabilities of the targets by torch; arguments and result as in :func:`log_probabilities`."""
    states = hidden.index_select(0, send(places, hidden.device)).to(weight.dtype)
    wanted = send(targets, hidden.device)
    return _logits(states, weight).log_softmax(1).gather(1, wanted[:, None])[:, 0].float()
