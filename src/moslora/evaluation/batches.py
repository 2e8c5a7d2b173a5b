"""Blocks and batches: the ids of questions alone decide which questions share a forward pass.

In low precision the shapes of a forward pass move its result: kernels choose the order of their sums by the shape, and
in bfloat16 a question scored alone or in a batch differs by up to 0.4 in a logit. If options decided the shapes, a
``--limit`` or a resumed run would change predictions. Therefore a task's questions are ordered by the hash of their id
and cut into blocks of a fixed size, and a block is computed as a whole. The sizes of batches and blocks are larger on a
GPU, and recorded with the results.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from moslora.runs.answers import order_key
from moslora.tasks import Example

BLOCK_SIZE = 64
"""Number of questions in a block on a CPU: enough to sort by length, few enough that a limit wastes little."""

WRITTEN_BLOCK_SIZE = 128
"""Number of questions in a block that is answered by generated texts, on every device. The last texts of a block are
written by few rows, and a step for few rows takes nearly as long as for many."""

BLOCKS_ON_GPU = 4
"""Number of a CPU's blocks that make one block on a GPU, where a batch holds more than 64 questions."""


def batch_budget(device: torch.device) -> int:
    """Default of the largest number of tokens in a batch: more gain nothing on a CPU, fewer leave a GPU idle."""
    if device.type == "cpu":
        return 2_048
    return 16_384


def block_size(device: str, *, writes: bool) -> int:
    """Number of questions in a block on a type of device; ``writes``: the questions are answered by generated texts."""
    if writes:
        return WRITTEN_BLOCK_SIZE
    return BLOCK_SIZE if device == "cpu" else BLOCK_SIZE * BLOCKS_ON_GPU


@dataclass(frozen=True)
class Block:
    """Questions of one task that are computed together.

    Attributes:
        computed: questions that go through the model.
        wanted: questions among them whose predictions are kept.
    """

    computed: tuple[Example, ...]
    wanted: tuple[Example, ...]


def blocks(
    examples: Sequence[Example], *, limit: int | None, exact: bool, skip: int = 0, size: int = BLOCK_SIZE
) -> Iterator[Block]:
    """Cut a task into blocks.

    Args:
        examples: all questions of the task, in any order. limit: number of wanted questions, the first in the order of
        `order_key`; ``None`` for all. exact: shapes do not change results, as in float32, so only the wanted questions
        are computed; otherwise whole blocks are. skip: number of questions that are left out before the wanted ones.
        size: number of questions in a block.
    """
    ordered = sorted(examples, key=lambda example: order_key(example.id))
    end = len(ordered) if limit is None else skip + limit
    for start in range(skip // size * size, len(ordered[:end]), size):
        block = tuple(ordered[start : start + size])
        wanted = block[max(0, skip - start) : end - start]
        yield Block(computed=wanted if exact else block, wanted=wanted)


def in_batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Yield the places of questions of similar length that share a batch.

    The longest questions come first, so that a lack of memory shows at once. A padded batch would have at most
    ``tokens`` tokens; a longer question is a batch by itself.
    """
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])  # stable: equal lengths keep their order
    first = 0
    while first < len(order):
        count = max(1, tokens // lengths[order[first]])
        yield order[first : first + count]
        first += count
