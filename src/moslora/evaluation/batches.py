"""The questions that share a forward pass: decided by their ids alone.

In low precision the shapes of a forward pass move its result: kernels choose the order of their sums by the
shape, and in bfloat16 the same question scored alone or in a batch differs by up to 0.4 in a logit. If the
flags decided the shapes, a ``--limit`` or a resumed run would change predictions. So the shapes are a
function of the ids: a task's questions, ordered by the hash of their id, are cut into blocks of a fixed size,
and a block is computed as a whole. What remains are the sizes of a batch and of a block, larger on a GPU, which are
recorded with the results.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from moslora.runs.answers import order_key
from moslora.tasks import Example

BLOCK_SIZE = 64
"""Questions of a block on a CPU: enough to sort by length, few enough that a limit wastes little."""

WRITTEN_BLOCK_SIZE = 128
"""Questions of a block that are answered by generated texts, on every device. The last texts of a block are written by
few rows, and for these a step takes nearly as long as for many."""

BLOCKS_ON_GPU = 4
"""Blocks that are merged into one on a GPU, where a batch holds more than 64 questions."""


def batch_budget(device: torch.device) -> int:
    """Default for the maximum number of tokens in a batch: more gain nothing on a CPU, fewer leave a GPU idle."""
    if device.type == "cpu":
        return 2_048
    return 16_384


def block_size(device: str, *, writes: bool) -> int:
    """Number of questions that are computed together on a kind of device.

    ``writes``: they are answered by generated texts.
    """
    if writes:
        return WRITTEN_BLOCK_SIZE
    return BLOCK_SIZE if device == "cpu" else BLOCK_SIZE * BLOCKS_ON_GPU


@dataclass(frozen=True)
class Block:
    """Questions of one task that are computed together."""

    computed: tuple[Example, ...]  # the questions that go through the model
    wanted: tuple[Example, ...]  # those of them that count


def blocks(
    examples: Sequence[Example], *, limit: int | None, exact: bool, skip: int = 0, size: int = BLOCK_SIZE
) -> Iterator[Block]:
    """Cuts a task into blocks.

    Args:
        examples: all questions of the task, in any order.
        limit: number of questions that are wanted, the first in the order of `order_key`; ``None`` for all.
        skip: number of questions in front of these.
        exact: shapes do not change results, as in float32, so only the wanted questions are computed.
        size: questions of a block.
    """
    ordered = sorted(examples, key=lambda example: order_key(example.id))
    end = len(ordered) if limit is None else skip + limit
    for start in range(skip // size * size, len(ordered[:end]), size):
        block = tuple(ordered[start : start + size])
        wanted = block[max(0, skip - start) : end - start]
        yield Block(computed=wanted if exact else block, wanted=wanted)


def in_batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Yield the places of questions that share a batch, of similar length.

    The longest come first: what does not fit into memory says so at once. A batch has at most ``tokens`` tokens, were
    it padded; a question that is longer is a batch by itself.
    """
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])  # stable: equal lengths keep their order
    first = 0
    while first < len(order):
        count = max(1, tokens // lengths[order[first]])
        yield order[first : first + count]
        first += count
