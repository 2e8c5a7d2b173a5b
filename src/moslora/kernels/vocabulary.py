"""Softmax over a vocabulary, one piece of it at a time: with z the logits of a position,

    log Σ exp z = log Σ_pieces exp(log Σ_piece exp z)

It replaces a log-softmax over the logits of all positions and tokens, which would take gigabytes. On a CPU a piece
stays in the cache between the product that computes it and the product that uses it. A GPU computes the whole
vocabulary, for some positions at a time; in training by :func:`label_loss`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, gcd

import torch
from torch import Tensor

from moslora.kernels.linear import product

PIECE_ON_CPU = (2**10, 2**12)
"""Numbers of positions and tokens computed at once on a CPU: 8 MB of logits in bfloat16."""

LOGITS_AT_ONCE = 2**27
"""Maximum number of logits at once on a GPU, 1.1 GB in float32 with their softmax: 1,046 positions of LLaMA-3's
vocabulary. It does not depend on the GPU's memory, because products of another size may round differently."""


@dataclass(frozen=True)
class Piece:
    """Softmax of n positions over c tokens of the vocabulary.

    Attributes:
        weight: rows of the output layer for these tokens, shape ``(c, hidden)``.
        p: softmax within the piece, shape ``(n, c)``, in the logits' dtype.
        rest: 1 − p of the likeliest token, in the dtype and shape of ``log_sum``, without the rounding of ``p``.
        log_sum: log Σ exp z over the piece, float32 or wider of shape ``(n, 1)``.
        likeliest: a token with the largest p, int64 of shape ``(n, 1)``.
        begin: first token of the piece.
        of_targets: logits of the targets in the piece, −∞ for other targets, in the dtype of ``log_sum``, ``(P,)``.
    """

    weight: Tensor
    p: Tensor
    rest: Tensor
    log_sum: Tensor
    likeliest: Tensor
    begin: int
    of_targets: Tensor

    def p_minus_one_hot(self, labels: Tensor) -> Tensor:
        """p − 1 for the label of a position, p for other tokens, shape ``(n, c)``; overwrites ``p``.

        1 is subtracted before rounding, because p of a nearly certain label rounds to 1. ``labels`` is int64 ``(n,
        1)``.
        """
        place = (labels - self.begin).clamp(0, self.p.shape[1] - 1)
        p = self.p.gather(1, place).to(self.rest.dtype)
        p_minus_one = torch.where(labels == self.likeliest, -self.rest, p - 1)
        is_here = labels == place + self.begin
        _put(self.p, _places(self.p) + place, torch.where(is_here, p_minus_one, p).to(self.p.dtype))
        return self.p


def _places(p: Tensor) -> Tensor:
    """Index of each row's first entry in the flattened ``p (n, c)``, int64 of shape ``(n, 1)``."""
    return torch.arange(0, p.numel(), p.shape[1], device=p.device).unsqueeze(1)


def _put(p: Tensor, at: Tensor, values: Tensor) -> None:
    """Set an entry of each row of ``p (n, c)``, by its index ``at (n, 1)`` in the flattened p, to ``values (n, 1)``.

    ``scatter_`` would copy a whole 16-bit tensor twice on a CPU.
    """
    p.view(-1).index_copy_(0, at.squeeze(1), values.squeeze(1))


def sizes(positions: int, vocabulary: int, device: torch.device) -> tuple[int, int]:
    """Numbers of positions and tokens of the vocabulary to compute at once.

    On a GPU the positions are divided equally, because a small remainder would take about as long.
    """
    if device.type == "cpu":
        return PIECE_ON_CPU
    times = max(1, ceil(positions * vocabulary / LOGITS_AT_ONCE))
    return ceil(positions / times), vocabulary


def exact_logits(states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Logits of the targets in float32 or wider, shape ``(P,)``.

    ``states`` is ``(P, hidden)``, ``weight`` ``(V, hidden)``, ``targets`` int64 ``(P,)``. A 16-bit product
    rounds a logit of 30 by up to 0.06, which is more than −log p of a likely token.
    """
    wide = torch.promote_types(states.dtype, torch.float32)
    return torch.linalg.vecdot(states.to(wide), weight.index_select(0, targets).to(wide))


def exact_log_sum(log_sum: Tensor, rounded: Tensor, exact: Tensor, dtype: torch.dtype) -> Tensor:
    """log(Σ exp z − exp z[y] + exp z'[y]), with the target's exact logit z'[y] instead of the rounded z[y].

    log p(y) = z'[y] − log Σ is then never above 0. All tensors are ``(P,)``; ``dtype`` is that of the products.
    """
    if dtype.itemsize > 2:  # z and z' differ only by the order of their sums
        return log_sum.maximum(exact)
    log_p = (rounded - log_sum).clamp(max=0)
    others = log_sum + (-log_p.expm1()).log()
    return others.logaddexp(exact)


def pieces(states: Tensor, weight: Tensor, rows: Tensor, targets: Tensor) -> Iterator[Piece]:
    """Yield the probabilities of n positions for one :class:`Piece` of the vocabulary after another.

    log Σ exp z is z − log p of the likeliest token, whose p has the smallest relative rounding error. If p is near 1,
    log p is log(1 − Σ p) over the other tokens. On a CPU the softmax is in the logits' dtype, with float32 inside: a
    float32 copy would take eight times as long.

    Args:
        states: h, shape ``(n, hidden)``.
        weight: W, shape ``(V, hidden)``; z = h Wᵀ.
        rows: row of ``states`` of each target, int64 of shape ``(P,)``.
        targets: token ids, int64 of shape ``(P,)``.
    """
    wide = torch.promote_types(states.dtype, torch.float32)
    _, tokens = sizes(len(states), len(weight), weight.device)
    begin = 0
    for part in weight.split(tokens):
        logits = product(states, part)
        if logits.device.type != "cpu":
            logits = logits.to(wide)
        place = (targets - begin).clamp(0, len(part) - 1)
        of_targets = logits[rows, place].to(wide).where(targets == place + begin, -torch.inf)
        p = logits.softmax(1)
        # Non-negative numbers have the order of their bits, which a CPU compares in half the time. Taking the maximum
        # of each block first halves the time again.
        as_bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[p.dtype.itemsize]
        blocks = p.view(as_bits).view(len(p), -1, gcd(p.shape[1], 64))  # (n, blocks, entries)
        _, best_block = blocks.amax(2).max(1, keepdim=True)  # (n, 1)
        best_block = best_block + _places(blocks[..., 0])  # index among the blocks of all positions
        bits, at = blocks.flatten(0, 1).index_select(0, best_block.squeeze(1)).max(1, keepdim=True)
        at += best_block * blocks.shape[2]  # index of the likeliest token among all entries of p
        largest = bits.view(p.dtype)
        top = logits.take(at).to(wide)
        others = p.view(-1).index_fill_(0, at.squeeze(1), 0).view_as(blocks)
        # In two steps, which takes a CPU a fifth of the time.
        rest = others.sum(2).sum(1, keepdim=True).to(wide)
        _put(p, at, largest)
        log_p = torch.where(largest > 0.5, torch.log1p(-rest), largest.to(wide).log())
        likeliest = at - _places(p) + begin
        yield Piece(part, p, rest, top - log_p, likeliest, begin, of_targets)
        begin += len(part)


def label_loss(states: Tensor, weight: Tensor, labels: Tensor, gradient: Tensor | None) -> Tensor:
    """Label loss −Σ log p(label) over the whole vocabulary, a scalar in float32 or wider.

    ``gradient``, if given, becomes the gradient of h, (p − e_label) W. ``states``, h, is ``(n, hidden)``, ``weight``
    ``(V, hidden)``, ``labels`` int64 ``(n,)``, ``gradient`` ``(n, hidden)``.

    It is meant for a GPU, where each operation over all logits is a pass over memory: 26 bytes per logit in bfloat16.
    The label's p − 1 would be 0 if p rounds to 1, so it is minus the sum of the other p. In float16, where p below 6e-8
    is zero, it is expm1(log p).
    """
    # One statement, because a name would keep the logits in memory beside their log-softmax.
    log_p = _wide_logits(states, weight, labels).log_softmax(1)
    labels = labels[:, None]
    of_labels = log_p.gather(1, labels)
    if gradient is not None:
        p = torch.exp(log_p, out=torch.empty_like(log_p, dtype=states.dtype))
        if p.dtype == torch.float16:
            p_minus_one = of_labels.expm1().to(p.dtype)
        else:
            p_minus_one = -p.scatter_(1, labels, 0).sum(1, keepdim=True)
        torch.mm(p.scatter_(1, labels, p_minus_one), weight, out=gradient)
    return -of_labels.sum()


def _wide_logits(states: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Logits in float32 or wider, ``(n, V)``; the logits of the labels are not rounded to the dtype of ``states``."""
    logits = product(states, weight).to(torch.promote_types(states.dtype, torch.float32))
    if states.dtype.itemsize > 2:
        return logits
    return logits.scatter_(1, labels[:, None], exact_logits(states, weight, labels)[:, None])
