"""Optimizer steps of encoded rows, and the micro-batches of a step."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

from moslora.base.engines import Batch, Own, PromptGroups
from moslora.data.encode import IGNORE_INDEX, Encoded
from moslora.kernels.rows import send
from moslora.recipe import TrainingSection


def default_micro_batch_tokens(*, on_gpu: bool) -> int:
    """Maximum tokens of a micro-batch if the recipe sets none: they keep a GPU busy, and more hardly helps a CPU."""
    return 8_192 if on_gpu else 2_048


class StepPlan:
    """Rows of each optimizer step, drawn uniformly at random whatever their lengths.

    Epochs are permutations, concatenated and cut into steps of ``global_batch_size`` rows, so that only the very last
    step may be smaller. A step is a pure function of the seed and its number: resuming continues the count, and every
    process computes the same plan.

    ``training.epochs`` may be fractional; ``max_steps`` is an upper bound.
    """

    def __init__(self, training: TrainingSection, *, rows: int, seed: int) -> None:
        self.rows = rows
        self.global_batch_size = training.global_batch_size
        self.seed = seed
        ends = []
        if training.epochs is not None:
            ends.append(math.ceil(Fraction(str(training.epochs)) * rows))  # 1.1 is a little more in binary
        if training.max_steps is not None:
            ends.append(training.max_steps * self.global_batch_size)
        self._end = min(ends)

    def __len__(self) -> int:
        return math.ceil(self._end / self.global_batch_size)

    def __getitem__(self, step: int) -> list[int]:
        """Row numbers of ``step``, 0 ≤ step < len(self)."""
        if not 0 <= step < len(self):
            raise IndexError(step)
        begin = step * self.global_batch_size
        end = min(begin + self.global_batch_size, self._end)
        drawn = []
        for draw in range(begin, end):
            epoch, position = divmod(draw, self.rows)
            drawn.append(self._epoch(epoch)[position])
        return drawn

    def draws(self, kinds: Sequence[str], *, steps: int) -> dict[str, int]:
        """Count how many rows of each kind the first ``steps`` use; a kind of which none is used is left out.

        Args:
            kinds: the kind of each row, such as its task.
            steps: number of steps.
        """
        epochs, rest = divmod(min(steps * self.global_batch_size, self._end), self.rows)
        begun = Counter(kinds[row] for row in self._epoch(epochs)[:rest])
        counts = {kind: epochs * count + begun[kind] for kind, count in Counter(kinds).items()}
        return {kind: count for kind, count in counts.items() if count}

    def _epoch(self, epoch: int) -> list[int]:
        return _permutation(self.rows, self.seed * 1_000_003 + epoch)


@lru_cache(maxsize=2)  # epochs that a step touches at most
def _permutation(rows: int, seed: int) -> list[int]:
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).tolist()


def group_by_length(lengths: Sequence[int], *, tokens: int, pads: bool = False) -> list[list[int]]:
    """Group the rows of one step into micro-batches of at most ``tokens`` tokens, rows of similar length together.

    Args:
        lengths: tokens of each row.
        tokens: maximum of a micro-batch. A longer row is a micro-batch by itself.
        pads: each row counts as the longest row of its micro-batch.

    Returns:
        positions in ``lengths``, a list for each micro-batch.
    """
    batches: list[list[int]] = []
    last_lengths: list[int] = []  # of the last micro-batch
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        last_lengths.append(lengths[row])
        if not batches or tokens_of(last_lengths, pads=pads) > tokens:
            batches.append([])
            last_lengths = [lengths[row]]
        batches[-1].append(row)
    return batches


def tokens_of(lengths: Sequence[int], *, pads: bool) -> int:
    """Tokens of a micro-batch with rows of these ``lengths``; ``pads`` as in `group_by_length`."""
    return max(lengths) * len(lengths) if pads else sum(lengths)


def micro_batches_of(
    rows: Sequence[Encoded], *, process: int, processes: int, tokens: int, pads: bool = False
) -> list[list[Encoded]]:
    """Micro-batches of one process, which takes every ``processes``-th of ``rows``.

    Processes wait for each other in every pass, so all have the same number of micro-batches, the last of which may be
    empty.
    """
    lengths = [len(row.input_ids) for row in rows]
    groups = [group_by_length(lengths[first::processes], tokens=tokens, pads=pads) for first in range(processes)]
    share = rows[process::processes]
    batches = [[share[i] for i in positions] for positions in groups[process]]
    count = max(map(len, groups))
    return batches + [[] for _ in range(count - len(batches))]


def largest_micro_batch(lengths: Sequence[int], *, processes: int, tokens: int, pads: bool = False) -> int:
    """Tokens of the largest micro-batch of any process in a step with rows of these ``lengths``."""
    largest = 0
    for first in range(processes):
        share = lengths[first::processes]
        for positions in group_by_length(share, tokens=tokens, pads=pads):
            largest = max(largest, tokens_of([share[i] for i in positions], pads=pads))
    return largest


@dataclass(frozen=True)
class MicroBatch(Batch):
    """Rows that are computed together, with N labelled tokens in all. The tensors are int64."""

    tasks: Tensor  # number of each token's task, of the shape of input_ids
    predicted_from: list[int]  # positions of the N tokens before labelled tokens
    places: Tensor  # predicted_from on the device, (N,)
    labels: Tensor  # labelled tokens, (N,)


def collate(
    rows: Sequence[Encoded],
    *,
    device: torch.device,
    tasks: Sequence[str] = (),
    share: bool = False,
    build_batch: Callable[[PromptGroups, torch.device], Batch] = Own.build_batch,
) -> MicroBatch:
    """Build a micro-batch of ``rows``; without rows, one token without a label.

    The positions of the labels are found on the host, so that no device has to be waited for.

    Args:
        rows: encoded training rows.
        device: of the tensors.
        tasks: names of the tasks, numbered by their place in this list; any other task has the next number.
        share: compute only once the tokens with which all rows begin; see `moslora.adapters.shares_beginnings`.
        build_batch: method ``build_batch`` of the engine that computes the model.
    """
    if not rows:
        rows = [Encoded(id="", task="", input_ids=[0], labels=[IGNORE_INDEX], truncated=False)]
    texts = [row.input_ids for row in rows]
    groups = [texts] if share else [[text] for text in texts]
    batch = build_batch(groups, device)
    numbers = {name: number for number, name in enumerate(tasks)}
    task_of_token = [len(numbers)] * batch.input_ids.numel()
    predicted_from: list[int] = []
    labels: list[int] = []
    for row, path in zip(rows, batch.paths, strict=True):
        for position in path:
            task_of_token[position] = numbers.get(row.task, len(numbers))
        for before, label in zip(path, row.labels[1:], strict=False):  # a row's first token is predicted by nothing
            if label != IGNORE_INDEX:
                predicted_from.append(before)
                labels.append(label)
    return MicroBatch(
        **vars(batch),
        tasks=send(torch.tensor(task_of_token).view_as(batch.input_ids), device),
        predicted_from=predicted_from,
        places=send(predicted_from, device),
        labels=send(labels, device),
    )


def label_count(rows: Sequence[Encoded]) -> int:
    """Number of tokens in the loss. A row's first token is predicted by nothing, so its label never counts."""
    return sum(label != IGNORE_INDEX for row in rows for label in row.labels[1:])
