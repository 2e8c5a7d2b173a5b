"""The softmax over a vocabulary, a piece of it at a time: with z the logits of a position,

    log Σ exp z = log Σ_pieces exp(log Σ_piece exp z)

so that the logits of all positions and tokens, which would be gigabytes, are never in memory together. A CPU takes
pieces that stay in its cache from the product that makes them to the one that uses them; a GPU has no use for that and
takes the vocabulary whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from moslora.base.linear import product

PIECE_ON_CPU = (2**10, 2**12)
"""Positions and tokens taken at once on a CPU: 8 MB of logits in bfloat16."""

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integer dtype of as many bytes."""

LOGITS_AT_ONCE = 2**24
"""Logits held at a time elsewhere: 64 MB in float32."""


@dataclass(frozen=True)
class Piece:
    """Of n positions and c tokens of the vocabulary.

    Attributes:
        weight: its rows of the output layer, shape ``(c, hidden)``.
        p: softmax within the piece, shape ``(n, c)``, in the logits' dtype.
        log_sum: log Σ exp z over the piece, float32 or wider of shape ``(n, 1)``.
        top: the logit of the largest p, of that dtype and shape.
        likeliest: its token, int64 of shape ``(n, 1)``; of tokens with equal p any.
    """

    weight: Tensor
    p: Tensor
    log_sum: Tensor
    top: Tensor
    likeliest: Tensor


def sizes(vocabulary: int, device: torch.device) -> tuple[int, int]:
    """How many positions are taken at once, and how many tokens."""
    return PIECE_ON_CPU if device.type == "cpu" else (max(1, LOGITS_AT_ONCE // vocabulary), vocabulary)


def pieces(states: Tensor, weight: Tensor) -> Iterator[Piece]:
    """The pieces of a vocabulary, for as many positions as :func:`sizes` says.

    log Σ exp z is z − log p of the likeliest token, where the rounding of p, relative, is least. On a CPU the softmax
    is in the logits' dtype, with float32 inside: a float32 copy would take eight times as long.

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
        bits, at = p.view(BITS[p.dtype.itemsize]).max(1, keepdim=True)
        top = logits.gather(1, at).to(wide)
        yield Piece(part, p, top - bits.view(p.dtype).to(wide).log(), top, at + begin)
        begin += len(part)
