"""The softmax over a vocabulary, a piece of it at a time: with z the logits of a position,

    log Σ exp z = log Σ_pieces exp(log Σ_piece exp z)

Replaces a log-softmax over the logits of all positions and tokens, which would be gigabytes: they are never in memory
together. A CPU takes pieces that stay in its cache from the product that makes them to the one that uses them; a GPU
has no use for that and takes the vocabulary whole, for some positions at a time; in training by :func:`label_loss`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, gcd

import torch
from torch import Tensor

from moslora.kernels.linear import product

PIECE_ON_CPU = (2**10, 2**12)
"""Positions and tokens taken at once on a CPU: 8 MB of logits in bfloat16."""

LOGITS_AT_ONCE = 2**27
"""Logits held at a time elsewhere, 1.1 GB in float32 with their softmax: 1,046 positions of LLaMA-3's vocabulary. Not a
share of the GPU's memory: products of another size may round differently, and a resumed run has the same pieces."""


@dataclass(frozen=True)
class Piece:
    """The softmax of n positions over c tokens of the vocabulary."""

    weight: Tensor  # its rows of the output layer, shape (c, hidden)
    p: Tensor  # softmax within the piece, shape (n, c), in the logits' dtype
    rest: Tensor  # 1 − p of the likeliest token, of log_sum's dtype and shape; not rounded as p itself is
    log_sum: Tensor  # log Σ exp z over the piece, float32 or wider of shape (n, 1)
    likeliest: Tensor  # the token of the largest p, int64 of shape (n, 1); of tokens with equal p any
    begin: int  # the first of its tokens
    of_targets: Tensor  # logits of the targets in the piece, −∞ for the others, of log_sum's dtype and shape (P,)

    def p_minus_one_hot(self, labels: Tensor) -> Tensor:
        """p, less 1 for the label where it is in the piece; changes p. Subtracted before it is rounded: where the label
        is nearly certain, p rounds to 1. ``labels`` is int64 of shape ``(n, 1)``."""
        place = (labels - self.begin).clamp(0, self.p.shape[1] - 1)
        p = self.p.gather(1, place).to(self.rest.dtype)
        p_minus_one = torch.where(labels == self.likeliest, -self.rest, p - 1)
        is_here = labels == place + self.begin
        _put(self.p, _places(self.p) + place, torch.where(is_here, p_minus_one, p).to(self.p.dtype))
        return self.p


def _places(p: Tensor) -> Tensor:
    """The place of each row's first entry among all, int64 of shape ``(n, 1)``."""
    return torch.arange(0, p.numel(), p.shape[1], device=p.device).unsqueeze(1)


def _put(p: Tensor, at: Tensor, values: Tensor) -> None:
    """Sets an entry of each row, by its place among all. A CPU's ``scatter_`` copies all of a 16-bit tensor twice."""
    p.view(-1).index_copy_(0, at.squeeze(1), values.squeeze(1))


def sizes(positions: int, vocabulary: int, device: torch.device) -> tuple[int, int]:
    """Positions and tokens of the vocabulary taken at once. On a GPU the positions are shared out equally: a few that
    were left over would keep it busy about as long."""
    if device.type == "cpu":
        return PIECE_ON_CPU
    times = max(1, ceil(positions * vocabulary / LOGITS_AT_ONCE))
    return ceil(positions / times), vocabulary


def exact_logits(states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Logits of the targets, float32 or wider of shape ``(P,)``.

    ``states`` is ``(P, hidden)``, ``weight`` ``(V, hidden)``, ``targets`` int64 ``(P,)``. A product of 16 bits rounds a
    logit of 30 by up to 0.06, which is more than −log p of a likely token.
    """
    wide = torch.promote_types(states.dtype, torch.float32)
    return torch.linalg.vecdot(states.to(wide), weight.index_select(0, targets).to(wide))


def exact_log_sum(log_sum: Tensor, rounded: Tensor, exact: Tensor, dtype: torch.dtype) -> Tensor:
    """log(Σ exp z − exp z[y] + exp z'[y]): the target's rounded logit z[y] is replaced by the exact one, z'[y].

    So log p(y) = z'[y] − log Σ is never above 0. All have the shape ``(P,)``; ``dtype`` is that of the products.
    """
    if dtype.itemsize > 2:  # which differ in the order of their sums alone
        return log_sum.maximum(exact)
    log_p = (rounded - log_sum).clamp(max=0)
    others = log_sum + (-log_p.expm1()).log()
    return others.logaddexp(exact)


def pieces(states: Tensor, weight: Tensor, rows: Tensor, targets: Tensor) -> Iterator[Piece]:
    """The pieces of a vocabulary, for as many positions as :func:`sizes` says.

    log Σ exp z is z − log p of the likeliest token, where the rounding of p, relative, is least; and where that is near
    1, log p is log(1 − Σ p) over the others, each of which is rounded to its own size. On a CPU the softmax is in the
    logits' dtype, with float32 inside: a float32 copy would take eight times as long.

    Args:
        states: h, shape ``(n, hidden)``.
        weight: W, shape ``(V, hidden)``; z = h Wᵀ.
        rows: the targets' rows of ``states``, int64 of shape ``(P,)``.
        targets: tokens, int64 of shape ``(P,)``.
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
        # Numbers that are not negative are in the order of their bits, which a CPU compares in half the time; and the
        # largest of each block first, in half of that.
        as_bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[p.dtype.itemsize]
        blocks = p.view(as_bits).view(len(p), -1, gcd(p.shape[1], 64))  # (n, blocks, entries)
        _, best_block = blocks.amax(2).max(1, keepdim=True)  # (n, 1)
        best_block = best_block + _places(blocks[..., 0])  # among the blocks of all positions
        bits, at = blocks.flatten(0, 1).index_select(0, best_block.squeeze(1)).max(1, keepdim=True)
        at += best_block * blocks.shape[2]  # the likeliest token's place among all entries of p
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
    """−Σ log p(label) over the whole vocabulary at once; ``gradient``, where given, becomes that of h, (p − e_label) W.

    ``states``, h, is ``(n, hidden)``, ``weight`` ``(V, hidden)``, ``labels`` int64 ``(n,)``; the sum float32 or wider.
    For a GPU, where each operation over all logits is a pass over memory: 26 bytes per logit in bfloat16.
    p is rounded as it is written. The label's p − 1, near 0 where p itself rounds to 1, is minus the sum of the others,
    each rounded to its own size; in float16, where those below 6e-8 are zero, expm1(log p), which is as exact as that.
    """
    # In one statement: a name would keep the logits beside what is made of them.
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
    """Logits in float32 or wider, ``(n, V)``, of which the labels' are not rounded to the dtype of ``states``."""
    logits = product(states, weight).to(torch.promote_types(states.dtype, torch.float32))
    if states.dtype.itemsize > 2:
        return logits
    return logits.scatter_(1, labels[:, None], exact_logits(states, weight, labels)[:, None])
