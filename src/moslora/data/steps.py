"""From encoded rows to optimizer steps, and from a step to padded micro-batches."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from moslora.data.encode import IGNORE_INDEX, Encoded
from moslora.tasks import task_number

PAD_MULTIPLE = 8
"""Batches are padded to a multiple of this many tokens, the granule of matrix units."""

MICRO_BATCH_OVERHEAD = 128
"""Tokens whose time one more micro-batch costs (135M model, 2 cores: 0.16 s fixed, about 800 tokens/s)."""


class StepPlan:
    """Which rows each optimizer step trains on: a uniform random draw, whatever the rows' lengths.

    The epochs are permutations laid end to end and cut into steps of ``global_batch_size`` rows, so that only
    the very last step may be smaller. A step is a pure function of the seed and its number: to resume is to
    go on counting, and every process computes the same plan.

    Args:
        rows: number of training rows.
        global_batch_size: rows per optimizer step, over all processes.
        epochs: passes over the rows; may be fractional.
        max_steps: an upper bound of the number of steps.
        seed: of the permutations.
    """

    def __init__(
        self, *, rows: int, global_batch_size: int, epochs: float | None, max_steps: int | None, seed: int
    ) -> None:
        limits = []
        if epochs is not None:
            limits.append(math.ceil(epochs * rows / global_batch_size))
        if max_steps is not None:
            limits.append(max_steps)
        self.rows = rows
        self.global_batch_size = global_batch_size
        self.seed = seed
        self._length = min(limits)
        self._end = self._length * global_batch_size
        if epochs is not None:
            self._end = min(self._end, math.ceil(epochs * rows))
        self._permutations: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, step: int) -> list[int]:
        """Row numbers of ``step``, 0 ≤ step < len(self)."""
        if not 0 <= step < len(self):
            raise IndexError(step)
        begin = step * self.global_batch_size
        end = min(begin + self.global_batch_size, self._end)
        return [self._permutation(i // self.rows)[i % self.rows] for i in range(begin, end)]

    def _permutation(self, epoch: int) -> list[int]:
        if epoch not in self._permutations:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            # A step touches two epochs at most.
            self._permutations = {e: p for e, p in self._permutations.items() if e == epoch - 1}
            self._permutations[epoch] = torch.randperm(self.rows, generator=generator).tolist()
        return self._permutations[epoch]


def cut(lengths: Sequence[int], *, micro_batch_size: int) -> list[list[int]]:
    """Cuts one step into micro-batches of rows of similar length, with the least padding.

    Sorted by length, the best cut is one into runs; it minimises Σ rows · longest + overhead per micro-batch by
    dynamic programming. Which rows share a step is not decided here.

    Args:
        lengths: tokens of each row.
        micro_batch_size: rows of a micro-batch at most.

    Returns:
        Positions into ``lengths``, each exactly once.
    """
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    best = [0.0]  # least cost of the first n rows in order
    begins = [0]  # where the last micro-batch of that cut begins
    for end in range(1, len(order) + 1):
        width = -(-lengths[order[end - 1]] // PAD_MULTIPLE) * PAD_MULTIPLE
        cost, begin = min(
            (best[begin] + (end - begin) * width + MICRO_BATCH_OVERHEAD, begin)
            for begin in range(max(0, end - micro_batch_size), end)
        )
        best.append(cost)
        begins.append(begin)
    batches = []
    end = len(order)
    while end:
        batches.append(order[begins[end] : end])
        end = begins[end]
    return batches[::-1]


def pad(
    sequences: Sequence[Sequence[int]], *, pad_id: int, multiple: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Pads on the right, where causal attention cannot see it, and masks what it padded.

    Args:
        sequences: token ids, of any lengths.
        pad_id: fills the rest.
        multiple: the length of the result is a multiple of this.
        device: where the result lies.

    Returns:
        ``input_ids`` and ``attention_mask`` (1 for a token, 0 for padding), both int64, shape
        ``(len(sequences), length)``.
    """
    length = -(-max(map(len, sequences)) // multiple) * multiple
    input_ids = torch.full((len(sequences), length), pad_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, sequence in enumerate(sequences):
        input_ids[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
        attention_mask[row, : len(sequence)] = 1
    return input_ids.to(device), attention_mask.to(device)


def collate(rows: Sequence[Encoded], *, pad_id: int, device: torch.device) -> dict[str, Tensor]:
    """A micro-batch.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels``, each int64 of shape ``(rows, length)``; the length is the
        longest row's, rounded up to :data:`PAD_MULTIPLE`. ``tasks``, int64 of shape ``(rows,)``, their tasks' numbers.
    """
    input_ids, attention_mask = pad(
        [row.input_ids for row in rows], pad_id=pad_id, multiple=PAD_MULTIPLE, device=device
    )
    labels, _ = pad([row.labels for row in rows], pad_id=IGNORE_INDEX, multiple=PAD_MULTIPLE, device=device)
    tasks = torch.tensor([task_number(row.task) for row in rows], device=device)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels, "tasks": tasks}


def label_count(rows: Sequence[Encoded]) -> int:
    """Tokens the loss counts. A row's first token is predicted by nothing, so its label never counts."""
    return sum(label != IGNORE_INDEX for row in rows for label in row.labels[1:])
