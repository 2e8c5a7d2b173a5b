"""From encoded rows to optimizer steps, and from a step to micro-batches."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

from moslora.data.encode import IGNORE_INDEX, Encoded
from moslora.kernels.rows import Rows, concatenate, send
from moslora.recipe import TrainingSection

MICRO_BATCH_TOKENS = {False: 2_048, True: 8_192}
"""Tokens of a micro-batch at most where the recipe does not say, by whether a GPU computes it: a CPU has little to gain
beyond, and a GPU is kept busy by them."""


class StepPlan:
    """The rows of each optimizer step: a uniform random draw, whatever their lengths.

    The epochs are permutations laid end to end and cut into steps of ``global_batch_size`` rows, so that only
    the very last step may be smaller. A step is a pure function of the seed and its number: to resume is to
    go on counting, and every process computes the same plan.

    ``epochs`` may be fractional; ``max_steps`` is an upper bound.
    """

    def __init__(
        self, *, rows: int, global_batch_size: int, epochs: float | None, max_steps: int | None, seed: int
    ) -> None:
        self.rows = rows
        self.global_batch_size = global_batch_size
        self.seed = seed
        ends = []
        if epochs is not None:
            ends.append(math.ceil(Fraction(str(epochs)) * rows))  # 1.1 is a little more in binary
        if max_steps is not None:
            ends.append(max_steps * global_batch_size)
        self._end = min(ends)

    @classmethod
    def of(cls, training: TrainingSection, *, rows: int, seed: int) -> "StepPlan":
        """The steps that a recipe's section asks for, over ``rows`` rows."""
        return cls(
            rows=rows,
            global_batch_size=training.global_batch_size,
            epochs=training.epochs,
            max_steps=training.max_steps,
            seed=seed,
        )

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
            epoch, place = divmod(draw, self.rows)
            drawn.append(_permutation(self.rows, self.seed * 1_000_003 + epoch)[place])
        return drawn


@lru_cache(maxsize=2)  # epochs that a step touches at most
def _permutation(rows: int, seed: int) -> list[int]:
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).tolist()


def cut(lengths: Sequence[int], *, tokens: int) -> list[list[int]]:
    """Cuts one step into micro-batches of at most ``tokens`` tokens, rows of similar length together.

    Which rows share a step is not decided here. A row longer than that is a micro-batch by itself. Returns positions
    into ``lengths``, the tokens of each row.
    """
    batches: list[list[int]] = []
    room = 0
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if lengths[row] > room:
            batches.append([])
            room = tokens
        batches[-1].append(row)
        room -= lengths[row]
    return batches


def passes(rows: Sequence[Encoded], *, process: int, processes: int, tokens: int) -> list[list[Encoded]]:
    """The micro-batches of one process, which has every ``processes``-th row.

    All have equally many, as they wait for each other in every pass; one whose rows are used up has empty ones.
    """
    shares = [rows[first::processes] for first in range(processes)]
    cuts = [cut([len(row.input_ids) for row in share], tokens=tokens) for share in shares]
    mine = [[shares[process][i] for i in batch] for batch in cuts[process]]
    return mine + [[] for _ in range(max(map(len, cuts)) - len(mine))]


def largest_pass(lengths: Sequence[int], *, processes: int, tokens: int) -> int:
    """Tokens of the largest micro-batch that any of the processes makes of a step of rows of these ``lengths``."""
    shares = [lengths[first::processes] for first in range(processes)]
    return max(sum(share[row] for row in batch) for share in shares for batch in cut(share, tokens=tokens))


@dataclass(frozen=True)
class MicroBatch:
    """Rows laid end to end, T tokens together, on their device. No row is padded. The tensors are int64."""

    input_ids: Tensor  # (1, T)
    rows: Rows  # which tokens belong together
    tasks: Tensor  # number of each token's task, (1, T)
    predicted_from: Tensor  # places of the N tokens after which a labelled one comes, (N,)
    labels: Tensor  # those labelled tokens, (N,)


def collate(
    rows: Sequence[Encoded], *, device: torch.device, tasks: Sequence[str] = (), share: bool = False
) -> MicroBatch:
    """A micro-batch of ``rows``. Where its labels are is decided here, on the host: no device is asked for it later.

    No rows are one token without a label. ``tasks`` have a number of their own each, all others the next number.
    ``share``: what all rows begin with is laid once; see `moslora.adapters.shares_beginnings`.
    """
    rows = rows or [Encoded(id="", task="", input_ids=[0], labels=[IGNORE_INDEX], truncated=False)]
    texts = [row.input_ids for row in rows]
    families = [texts] if share else [[text] for text in texts]
    tokens, laid, places = concatenate(families, device)
    numbers = {name: number for number, name in enumerate(tasks)}
    task_of_token = [len(numbers)] * len(tokens)
    predicted_from: list[int] = []
    labels: list[int] = []
    for row, path in zip(rows, places, strict=True):
        for place in path:
            task_of_token[place] = numbers.get(row.task, len(numbers))
        for before, label in zip(path, row.labels[1:], strict=False):  # a row's first token is predicted by nothing
            if label != IGNORE_INDEX:
                predicted_from.append(before)
                labels.append(label)
    return MicroBatch(
        input_ids=send([tokens], device),
        rows=laid,
        tasks=send([task_of_token], device),
        predicted_from=send(predicted_from, device),
        labels=send(labels, device),
    )


def label_count(rows: Sequence[Encoded]) -> int:
    """Tokens the loss counts. A row's first token is predicted by nothing, so its label never counts."""
    return sum(label != IGNORE_INDEX for row in rows for label in row.labels[1:])
