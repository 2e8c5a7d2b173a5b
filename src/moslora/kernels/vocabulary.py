"""The softmax over a vocabulary, a piece of it at a time: with z the logits of a position,

    log Σ exp z = log Σ_pieces exp(log Σ_piece exp z)

Replaces a log-softmax over the logits of all positions and tokens, which would be gigabytes: they are never in memory
together. A CPU takes pieces that stay in its cache from the product that makes them to the one that uses them; a GPU
has no use for that and takes the vocabulary whole, for some positions at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor

from moslora.kernels.linear import product

PIECE_ON_CPU = (2**10, 2**12)
"""Positions and tokens taken at once on a CPU: 8 MB of logits in bfloat16."""

LOGITS_AT_ONCE = 2**24
"""Logits held at a time elsewhere: 64 MB in float32."""


@dataclass(frozen=True)
class Piece:
    """The softmax of n positions over c tokens of the vocabulary.

    Attributes:
        weight: its rows of the output layer, shape ``(c, hidden)``.
        p: softmax within the piece, shape ``(n, c)``, in the logits' dtype.
        rest: 1 − p of the likeliest token, of ``log_sum``'s dtype and shape; not rounded as p itself is.
        log_sum: log Σ exp z over the piece, float32 or wider of shape ``(n, 1)``.
        top: the logit of the largest p, of that dtype and shape.
        likeliest: its token, int64 of shape ``(n, 1)``; of tokens with equal p any.
        begin: the first of its tokens.
    """

    weight: Tensor
    p: Tensor
    rest: Tensor
    log_sum: Tensor
    top: Tensor
    likeliest: Tensor
    begin: int

    def p_minus_one_hot(self, labels: Tensor) -> Tensor:
        """p, less 1 for the label where it is in the piece; changes p. Subtracted before it is rounded: where the label
        is nearly certain, p rounds to 1. ``labels`` is int64 of shape ``(n, 1)``."""
        place = (labels - self.begin).clamp(0, self.p.shape[1] - 1)
        p = self.p.gather(1, place).to(self.rest.dtype)
        less = torch.where(labels == self.likeliest, -self.rest, p - 1)
        return self.p.scatter_(1, place, torch.where(labels == place + self.begin, less, p).to(self.p.dtype))


def sizes(vocabulary: int, device: torch.device) -> tuple[int, int]:
    """Positions and tokens of the vocabulary taken at once."""
    return PIECE_ON_CPU if device.type == "cpu" else (max(1, LOGITS_AT_ONCE // vocabulary), vocabulary)


def pieces(states: Tensor, weight: Tensor) -> Iterator[Piece]:
    """The pieces of a vocabulary, for as many positions as :func:`sizes` says.

    log Σ exp z is z − log p of the likeliest token, where the rounding of p, relative, is least; and where that is near
    1, log p is log(1 − Σ p) over the others, each of which is rounded to its own size. On a CPU the softmax is in the
    logits' dtype, with float32 inside: a float32 copy would take eight times as long.

    Args:
        states: h, shape ``(n, hidden)``.
        weight: W, shape ``(V, hidden)``; z = h Wᵀ.
    """
    wide = torch.promote_types(states.dtype, torch.float32)
    begin = 0
    for part in weight.split(sizes(len(weight), weight.device)[1]):
        logits = product(states, part)
        if logits.device.type != "cpu":
            logits = logits.to(wide)
        p = logits.softmax(1)
        # Numbers that are not negative are in the order of their bits, which a CPU compares in half the time.
        as_bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[p.dtype.itemsize]
        bits, at = p.view(as_bits).max(1, keepdim=True)
        largest, top = bits.view(p.dtype), logits.gather(1, at).to(wide)
        # In two steps, which takes a CPU a fifth of the time.
        rest = p.scatter_(1, at, 0).unflatten(1, (-1, gcd(p.shape[1], 64))).sum(2).sum(1, keepdim=True).to(wide)
        p.scatter_(1, at, largest)
        log_p = torch.where(largest > 0.5, torch.log1p(-rest), largest.to(wide).log())
        yield Piece(part, p, rest, top - log_p, top, at + begin, begin)
        begin += len(part)
