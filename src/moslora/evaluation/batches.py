"""Which sequences share a forward pass: decided by the question ids alone.

In low precision the shapes of a forward pass move its result: kernels choose the order of their sums by the
shape, and in bfloat16 the same question scored alone or in a batch differs by up to 0.4 in a logit. If the
flags decided the shapes, a ``--limit`` or a resumed run would change predictions. So the shapes are a
function of the ids: a task's questions, ordered by the hash of their id, are cut into blocks of a fixed size,
and a block is computed as a whole. What remains is the size of a batch, which is recorded with the results.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from moslora.tasks import Example

Item = TypeVar("Item")
Result = TypeVar("Result")

BLOCK_SIZE = 64
"""Questions computed together: large enough to sort by length, small enough that a limit wastes little."""


def batch_budget(device: torch.device) -> int:
    """Default for the most tokens of a batch: more gain nothing on a CPU, fewer leave a GPU idle."""
    return 2_048 if device.type == "cpu" else 16_384


@dataclass(frozen=True)
class Block:
    """A piece of a task: ``computed`` goes through the model, ``wanted`` (its beginning) counts."""

    computed: tuple[Example, ...]
    wanted: tuple[Example, ...]


def canonical_order(examples: Sequence[Example]) -> list[Example]:
    """The examples by the hash of their id: a fixed order in which every beginning is a random sample."""
    return sorted(examples, key=lambda example: hashlib.sha256(example.id.encode()).digest())


def blocks(examples: Sequence[Example], *, limit: int | None, exact: bool, size: int = BLOCK_SIZE) -> Iterator[Block]:
    """Cuts a task into blocks.

    Args:
        examples: all questions of the task, in any order, whatever the limit: they define the blocks.
        limit: how many are wanted, the first in canonical order; ``None`` for all.
        exact: the arithmetic is float32 or wider, so that shapes do not matter: the last block is computed
            only as far as it is wanted. Otherwise it is computed whole.
        size: questions of a block.
    """
    ordered = canonical_order(examples)
    wanted = len(ordered) if limit is None else min(limit, len(ordered))
    for start in range(0, wanted, size):
        block = tuple(ordered[start : start + size])
        kept = block[: wanted - start]
        yield Block(computed=kept if exact else block, wanted=kept)


def batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Cuts the sequences of a block into batches of similar length, the longest first.

    Longest first: whatever does not fit into memory says so at once.

    Args:
        lengths: tokens of every sequence, in the block's order.
        tokens: most tokens of a batch, were it padded; a sequence longer than that is a batch by itself.

    Yields:
        Positions in ``lengths``. Every position comes once.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])  # stable: equal lengths keep the block's order
    while order:
        count = max(1, tokens // lengths[order[0]])
        yield order[:count]
        del order[:count]


def in_batches(
    compute: Callable[[list[Item]], Iterable[Result]], items: Sequence[Item], *, lengths: Sequence[int], tokens: int
) -> list[Result]:
    """The results of ``compute`` for ``items``, in their order, computed in :func:`batches`."""
    results: dict[int, Result] = {}
    for batch in batches(lengths, tokens):
        results.update(zip(batch, compute([items[i] for i in batch]), strict=True))
    return [results[i] for i in range(len(items))]
