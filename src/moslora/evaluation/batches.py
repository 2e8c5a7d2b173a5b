"""The questions that share a forward pass: decided by their ids alone.

In low precision the shapes of a forward pass move its result: kernels choose the order of their sums by the
shape, and in bfloat16 the same question scored alone or in a batch differs by up to 0.4 in a logit. If the
flags decided the shapes, a ``--limit`` or a resumed run would change predictions. So the shapes are a
function of the ids: a task's questions, ordered by the hash of their id, are cut into blocks of a fixed size,
and a block is computed as a whole. What remains are the sizes of a batch and of a block, larger on a GPU, which are
recorded with the results.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from moslora.tasks import Example

BLOCK_SIZE = 64
"""Questions computed together: large enough to sort by length, small enough that a limit wastes little."""

BLOCKS_ON_GPU = 4
"""As many are one on a GPU: a batch of its budget holds more questions than 64."""


def batch_budget(device: torch.device) -> int:
    """Default for the most tokens of a batch: more gain nothing on a CPU, fewer leave a GPU idle."""
    return 2_048 if device.type == "cpu" else 16_384


@dataclass(frozen=True)
class Block:
    """A piece of a task."""

    computed: tuple[Example, ...]  # goes through the model
    wanted: tuple[Example, ...]  # its beginning, which counts


def canonical_place(id: str) -> bytes:
    """A question's place in a fixed order in which every beginning is a random sample: the hash of its id."""
    return hashlib.sha256(id.encode()).digest()


def blocks(examples: Sequence[Example], *, limit: int | None, exact: bool, size: int = BLOCK_SIZE) -> Iterator[Block]:
    """Cuts a task, all its questions in any order, into blocks of ``size``. Up to ``limit`` are wanted, the first in
    canonical order. ``exact``: shapes do not matter, as in float32, so the last block is computed only as far as it
    is wanted."""
    ordered = sorted(examples, key=lambda example: canonical_place(example.id))
    wanted = len(ordered[:limit])
    for start in range(0, wanted, size):
        block = tuple(ordered[start : start + size])
        kept = block[: wanted - start]
        yield Block(computed=kept if exact else block, wanted=kept)
