"""Rows laid end to end in one sequence, without padding: where each lies, and what its tokens see."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

SIMILAR = 1.25
"""How many times its shortest row the longest of a group may be: beyond, padding costs more than another group."""

SCORES = 2**18
"""Most scores of a group and head, unless a single row has more: for a while they take 12 bytes each."""


@dataclass(frozen=True)
class Rows:
    """Rows that lie end to end, T tokens together; known on the host, so that no device is asked.

    A row may branch: its branches lie one after the other behind what they share, and each of them attends to that and
    to itself alone.

    Attributes:
        lengths: tokens of each row, branches included.
        device: where the tokens are.
        branches: of each row the tokens of its branches; empty where no row has any.
    """

    lengths: tuple[int, ...]
    device: torch.device
    branches: tuple[tuple[int, ...], ...] = ()
    _seen: dict[int | None, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    _groups: dict[int, list["Group"]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def bounds(self) -> list[tuple[int, int]]:
        """Begin and end of each row."""
        ends = list(accumulate(self.lengths))
        return list(zip([0, *ends[:-1]], ends, strict=True))

    @cached_property
    def paths(self) -> list[list[int]]:
        """Of every branch the tokens that its row shares and then its own; of a plain row all its tokens."""
        paths = []
        for (begin, end), branches in zip(self.bounds, self.branches or [()] * len(self.lengths), strict=True):
            fork = end - sum(branches)
            shared = list(range(begin, fork))
            ends = list(accumulate(branches, initial=fork))
            paths += [[*shared, *range(*bounds)] for bounds in pairwise(ends)] or [shared]
        return paths

    @cached_property
    def places(self) -> list[int]:
        """Each token's place in its path."""
        places = [0] * sum(self.lengths)
        for path in self.paths:
            for place, token in enumerate(path):
                places[token] = place
        return places

    @cached_property
    def positions(self) -> Tensor:
        """`places`, int64 of shape ``(1, T)``."""
        return send([self.places], self.device)

    def seen(self, window: int | None) -> Tensor:
        """Which tokens (columns) each token (row) of each row sees, bool of shape ``(rows, longest, longest)``."""
        if window not in self._seen:
            self._seen[window] = self._seen_in_trees(window) if self.branches else self._seen_in_rows(window)
        return self._seen[window]

    def _seen_in_rows(self, window: int | None) -> Tensor:
        longest = max(self.lengths)
        seen = torch.ones(longest, longest, dtype=torch.bool, device=self.device).tril_()
        return (seen if window is None else seen.triu_(1 - window)).expand(len(self.lengths), -1, -1)

    def _seen_in_trees(self, window: int | None) -> Tensor:
        places, branch_of = [], []  # in a padded batch; branch 0 is what the others share, padding a branch of its own
        for (begin, end), branches in zip(self.bounds, self.branches, strict=True):
            padding = max(self.lengths) - (end - begin)
            places.append([*self.places[begin:end], *[0] * padding])
            own = [number for number, length in enumerate(branches, start=1) for _ in range(length)]
            branch_of.append([*[0] * (end - begin - len(own)), *own, *[-1] * padding])
        place, branch = send(places, self.device), send(branch_of, self.device)
        distance = place.unsqueeze(2) - place.unsqueeze(1)
        seen = (distance >= 0) & ((branch.unsqueeze(1) == 0) | (branch.unsqueeze(2) == branch.unsqueeze(1)))
        return seen if window is None else seen & (distance < window)

    @cached_property
    def padded(self) -> tuple[Tensor, Tensor]:
        """Where in the sequence the tokens of a padded batch lie, ``(rows · longest,)``, and the way back, ``(T,)``.

        Padding stands for its row's first token; no token looks at it, as it lies to the right.
        """
        longest = max(self.lengths)
        there = [begin + (at if begin + at < end else 0) for begin, end in self.bounds for at in range(longest)]
        back = [row * longest + at for row, length in enumerate(self.lengths) for at in range(length)]
        return send(there, self.device), send(back, self.device)

    def groups(self, keys: int) -> list["Group"]:
        """All rows, in groups of neighbours of similar length, for so many key heads."""
        if keys not in self._groups:
            firsts = [0]
            for row in range(1, len(self.lengths)):
                lengths = self.lengths[firsts[-1] : row + 1]
                longest = max(lengths)
                if longest > SIMILAR * min(lengths) or len(lengths) * longest**2 > SCORES:
                    firsts.append(row)
            self._groups[keys] = [Group(self, *bounds, keys) for bounds in pairwise([*firsts, len(self.lengths)])]
        return self._groups[keys]


class Group:
    """Neighbouring rows as a batch of n, padded to the L tokens of the longest, on a CPU.

    Args:
        rows: all of them.
        first: of those in the group.
        end: the one after the last.
        keys: key heads K, which are a dimension of the batch.
    """

    def __init__(self, rows: Rows, first: int, end: int, keys: int) -> None:
        self.rows, self.first, self.end = rows, first, end
        bounds = rows.bounds[first:end]
        self.longest = max(rows.lengths[first:end])
        self._own = slice(bounds[0][0] * keys, bounds[-1][1] * keys)
        begins, lengths = torch.tensor([(begin, end - begin) for begin, end in bounds]).unsqueeze(-1).unbind(1)
        places = torch.arange(self.longest)
        self._real = places < lengths  # (n, L)
        tokens = begins + places * self._real  # padding stands for its row's first token
        self._there = (tokens.unsqueeze(1) * keys + torch.arange(keys).unsqueeze(1)).flatten()  # (n · K · L,)
        entries = torch.arange(len(self._there)).view(-1, keys, self.longest)
        self._back = entries.transpose(1, 2)[self._real].flatten()  # (tokens · K,)
        self._masks: dict[int | None, Tensor] = {}

    def batch(self, x: Tensor, *, zero_padding: bool = False) -> Tensor:
        """Of ``x``, shape ``(T, K, heads, size)``, the tokens of the group: ``(n · K, L · heads, size)``.

        Padding is the row's first token, which no token looks at there, to its right; or zero.
        """
        found = x.flatten(0, 1).flatten(1).index_select(0, self._there)
        if zero_padding:
            found.view(len(self._real), -1, self.longest, found.shape[-1]).mul_(self._real[:, None, :, None])
        return found.view(-1, self.longest * x.shape[2], x.shape[3])

    def put(self, batch: Tensor, out: Tensor) -> None:
        """Writes a batch's tokens to their places in ``out``."""
        flat = out.view(-1, out.shape[2] * out.shape[3])
        torch.index_select(batch.reshape(-1, flat.shape[-1]), 0, self._back, out=flat[self._own])

    def mask(self, window: int | None) -> Tensor:
        """0 where a token sees another and −∞ elsewhere, float32 of shape ``(n or 1, 1, L, 1, L)``."""
        if window not in self._masks:
            seen = self.rows.seen(window)[self.first : self.end if self.rows.branches else self.first + 1]
            seen = seen[:, None, : self.longest, None, : self.longest]
            self._masks[window] = torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)
        return self._masks[window]


def send(values: Sequence[Any], device: torch.device) -> Tensor:
    """``values`` as int64 on ``device``, which nothing waits for."""
    tensor = torch.tensor(values, dtype=torch.long)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
