"""Rows concatenated into one sequence without padding: their bounds, the row that each continues, what tokens see.

They replace the padded batch on every device. Linear layers, norms and the output layer compute neither padding nor a
common beginning of several rows twice. Only attention (`moslora.kernels.attention`) needs the rows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, chain, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

SCORES = 2**16
"""Maximum number of attention scores of a group of several rows and a head on a CPU, so that they stay in the cache."""

PADDING = 2**13
"""Maximum number of padded scores in a group on a CPU; beyond it a new group starts, which is faster."""

MULTIPLE = 2**4
FILLED_FROM = 2**9
"""On a CPU a sequence of at least 512 tokens is filled to a multiple of 16. Products of other sizes take up to half as
long again in oneDNN, and a twentieth longer on average."""


@dataclass(frozen=True)
class Rows:
    """Rows of one sequence of T tokens, described on the host, so that nothing waits for a device.

    A row may continue an earlier row: it then follows that row and all that this one continues. A common beginning of
    several texts is computed once in this way.
    """

    lengths: tuple[int, ...]  # tokens of each row, at least one
    device: torch.device  # where the tokens are
    continues: tuple[int | None, ...] = ()  # the row that each row continues; empty if none does
    filler: int = 0  # number of tokens at the end of the last row that belong to no text
    preceding: int = 0  # number of cached tokens before all rows, whose keys and values come first
    _groups: dict[int, list["Group"]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def bounds(self) -> list[tuple[int, int]]:
        """Begin and end of each row in the sequence."""
        return list(pairwise(_ends(self.lengths)))

    @cached_property
    def key_bounds(self) -> list[tuple[int, int]]:
        """Begin and end of each row's own keys among all keys, of which those of cached tokens come first."""
        return [(self.preceding + begin, self.preceding + end) for begin, end in self.bounds]

    @cached_property
    def pasts(self) -> list[list[int]]:
        """For each row the keys of its past (cached tokens and the rows that it continues), as indices of all keys."""
        pasts: list[list[int]] = []
        for before in self.continues or [None] * len(self.lengths):
            if before is None:
                pasts.append(list(range(self.preceding)))
            else:
                pasts.append([*pasts[before], *range(*self.key_bounds[before])])
        return pasts

    @cached_property
    def paths(self) -> list[list[int]]:
        """For each row the indices of its path's keys among all keys: first those of its past, then its own."""
        return [[*past, *range(*bounds)] for past, bounds in zip(self.pasts, self.key_bounds, strict=True)]

    @cached_property
    def positions(self) -> Tensor:
        """Each token's place in its path, which is its row after the rows that it continues; int64 of shape ``(1,
        T)``."""
        places: list[int] = []
        for past, length in zip(self.pasts, self.lengths, strict=True):
            places += range(len(past), len(past) + length)
        return send([places], self.device)

    @property
    def real(self) -> Tensor | None:
        """Mask of the tokens that belong to a text, bool of shape ``(1, T)``; ``None`` if all do."""
        if not self.filler:
            return None
        count = sum(self.lengths)
        return send(torch.arange(count)[None] < count - self.filler, self.device)

    @cached_property
    def ends(self) -> tuple[Tensor, Tensor]:
        """Cumulative lengths of the rows and of their paths, each int32 of shape ``(rows + 1,)`` with a leading 0."""
        of_rows = _ends(self.lengths)
        of_paths = _ends(len(path) for path in self.paths)
        own, path = send(torch.tensor([of_rows, of_paths], dtype=torch.int32), self.device)
        return own, path

    @cached_property
    def path_keys(self) -> Tensor | None:
        """Indices of the keys of all paths (each row after the rows that it continues), concatenated, int64 of shape
        ``(keys,)``; ``None`` if no row has a past."""
        if not any(self.pasts):
            return None
        return send(list(chain.from_iterable(self.paths)), self.device)

    def groups(self, heads: int = 1) -> list["Group"]:
        """Groups of neighbouring rows, for ``heads`` key heads.

        Rows that continue another row and rows that do not are in separate groups. On a CPU the rows of a group have
        similar lengths; on a GPU there are as few groups as possible.
        """
        if heads not in self._groups:
            self._groups[heads] = [Group(self, first, end, heads) for first, end in self._cuts]
        return self._groups[heads]

    @cached_property
    def _cuts(self) -> list[tuple[int, int]]:
        """First row of each group, and the first row after it."""
        firsts = [0]
        for row in range(1, len(self.lengths)):
            if not self._belong_together(firsts[-1], row + 1):
                firsts.append(row)
        return list(pairwise([*firsts, len(self.lengths)]))

    def _belong_together(self, first: int, end: int) -> bool:
        if bool(self.pasts[first]) != bool(self.pasts[end - 1]):
            return False
        if self.device.type != "cpu":
            return True
        alone = sum(self._scores(row, row + 1) for row in range(first, end))
        return self._scores(first, end) <= min(SCORES, alone + PADDING)

    def _scores(self, first: int, end: int) -> int:
        """Number of scores of a head if the rows from ``first`` to ``end`` − 1 are one group."""
        longest = max(self.lengths[first:end])
        longest_past = max(len(past) for past in self.pasts[first:end])
        return (end - first) * longest * (longest + longest_past)


def _ends(lengths: Iterable[int]) -> list[int]:
    """Cumulative sums of ``lengths``, with a leading 0."""
    return list(accumulate(lengths, initial=0))


class Group:
    """Neighbouring rows as a batch of n: queries padded to the L tokens of the longest row, keys to P + L, with the P
    tokens of the longest past.

    A group gathers and scatters entries by three lists of indices. For one key head, and the rows ``a b`` (tokens 0 and
    1), ``c d e`` (2 to 4) and ``f`` (5), where f continues a b:

    ===============  ================  =====================  =====================================
    group            batch of queries  entries to gather      places in the batch to scatter from
    ===============  ================  =====================  =====================================
    first two rows   a b a, c d e      0 1 0 2 3 4            0 1 3 4 5
    the third        f                 5                      0; its keys are a b f, entries 0 1 5
    ===============  ================  =====================  =====================================

    Padding repeats a row's first token. This changes no result: attention is causal, and padding is to the right of all
    queries. Entries have the shape ``(T · K, size)``: for each token its K key heads, which are a dimension of the
    batch.

    ``first`` to ``end`` − 1 are its rows; ``heads`` is K.
    """

    def __init__(self, rows: Rows, first: int, end: int, heads: int) -> None:
        lengths = rows.lengths[first:end]
        pasts = rows.pasts[first:end]
        begins = [begin for begin, _ in rows.bounds[first:end]]
        _, group_end = rows.bounds[end - 1]
        self.longest = max(lengths)  # L
        self.past = max(len(past) for past in pasts)  # P
        self.shape = (len(lengths), heads, self.longest)  # of a batch, (n, K, L)
        self._own = slice(begins[0] * heads, group_end * heads)  # the group's entries among all
        self._shares_past = self.past > 0 and all(past == pasts[0] for past in pasts)
        past_lengths = [len(past) for past in pasts]
        if min(past_lengths) == self.past:  # all are equal, and one row of a mask serves all
            past_lengths = past_lengths[:1]
        self._past_lengths = torch.tensor(past_lengths).unsqueeze(1)  # (n or 1, 1)
        self._seen: dict[int | None, Tensor] = {}
        self._masks: dict[int | None, Tensor] = {}

        places = torch.arange(self.longest)
        real = places < torch.tensor(lengths).unsqueeze(1)  # (n, L)
        tokens = torch.tensor(begins).unsqueeze(1) + places * real  # padding repeats the row's first token
        padded_pasts = [past + [0] * (self.past - len(past)) for past in pasts]
        past_keys = torch.tensor(padded_pasts, dtype=torch.long)  # (n, P)
        in_batch = (
            torch.arange(real.numel() * heads).view(self.shape).transpose(1, 2)
        )  # in the order of entries, (n, L, K)
        # Not in_batch[real], whose size is unknown for meta tensors, which a plan uses.
        back = torch.cat([row[:length] for row, length in zip(in_batch, lengths, strict=True)])  # (tokens, K)
        self._real = real[:, None, :, None]
        self._queries = send(_entries(tokens, heads).flatten(), rows.device)  # entry of each place in a batch
        with_pasts = torch.cat([past_keys, rows.preceding + tokens], 1)  # (n, P + L)
        self._keys = send(_entries(with_pasts, heads).flatten(), rows.device)
        self._back = send(back.flatten(), rows.device)  # place in a batch of each of the group's entries
        if self._shares_past:
            past_keys = past_keys[:1]
        self._pasts = send(_entries(past_keys, heads).flatten(), rows.device)

    def batch(self, x: Tensor, *, zero_padding: bool = False) -> Tensor:
        """Batch of the group's rows from all entries ``x (T · K, size)``, shape ``(n · K · L, size)``.

        Padding is the row's first token, or zeros if ``zero_padding``.
        """
        batch = x.index_select(0, self._queries)
        if zero_padding:
            batch.view(*self.shape, -1).mul_(self._real)
        return batch

    def with_past(self, x: Tensor) -> Tensor:
        """Batch of the group's rows, each preceded by what it continues, from all entries ``x (T · K, size)``; shape
        ``(n · K · (P + L), size)``."""
        if not (self.past and torch.is_grad_enabled()):
            return x.index_select(0, self._keys)
        wide = torch.promote_types(x.dtype, torch.float32)  # for the sums of gradients of shared keys
        return x.to(wide).index_select(0, self._keys).to(x.dtype)

    def back(self, batch: Tensor, out: Tensor | None = None) -> Tensor:
        """Entries of the group's rows from ``batch (n · K · L, size)``, without padding.

        They are written into all entries ``out (T · K, size)``, if given.
        """
        if out is None:
            return batch.index_select(0, self._back)
        return torch.index_select(batch, 0, self._back, out=out[self._own])

    def back_with_past(self, batch: Tensor, out: Tensor) -> None:
        """Write the rows' own entries of ``batch (n · K · (P + L), size)`` into ``out (T · K, size)``, and add those of
        their pasts to what ``out`` holds."""
        rows, heads, _ = self.shape
        past, own = batch.view(rows, heads, -1, batch.shape[1]).split((self.past, self.longest), 2)
        self.back(own.reshape(-1, batch.shape[1]), out)
        if self._shares_past:
            past = past.sum_to_size(1, *past.shape[1:])
        if self.past:
            out.index_add_(0, self._pasts, past.flatten(0, 2))

    def seen(self, window: int | None) -> Tensor:
        """Mask of the keys that each query sees, bool of shape ``(n, L, P + L)``, or ``(1, L, P + L)`` if all rows have
        the same."""
        if window not in self._seen:
            columns = torch.arange(self.past + self.longest)
            own = columns >= self.past
            places = torch.where(own, columns - self.past + self._past_lengths, columns)  # of the keys, (n, P + L)
            distance = (self._past_lengths + torch.arange(self.longest)).unsqueeze(2) - places.unsqueeze(1)
            seen = (own | (columns < self._past_lengths)).unsqueeze(1) & (distance >= 0)
            if window is not None:
                seen &= distance < window
            self._seen[window] = send(seen, self._queries.device)
        return self._seen[window]

    def mask(self, window: int | None) -> Tensor:
        """Additive mask: 0 where a query sees a key, −∞ elsewhere; float32 of shape ``(n or 1, 1, L, 1, P + L)``."""
        if window not in self._masks:
            seen = self.seen(window)[:, None, :, None]
            self._masks[window] = torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)
        return self._masks[window]


def _entries(tokens: Tensor, heads: int) -> Tensor:
    """Indices of the entries of ``tokens (n, count)`` for each key head, shape ``(n, heads, count)``."""
    return tokens.unsqueeze(1) * heads + torch.arange(heads).unsqueeze(1)


class _Piece(NamedTuple):
    """Tokens of a future row, and the row that it continues."""

    tokens: Sequence[int]
    before: int | None


def concatenate(
    groups: Sequence[Sequence[Sequence[int]]], device: torch.device
) -> tuple[list[int], Rows, list[list[int]]]:
    """Concatenate the texts of all groups into one sequence, in which the common beginning of a group is computed once.

    Returns:
        The tokens, their rows, and for each text, group by group, the places of its tokens.
    """
    pieces: list[_Piece] = []
    rests: list[_Piece] = []  # each text without the common beginning of its group
    for texts in groups:
        begin = common_prefix(texts) if len(texts) > 1 else 0
        before = None
        if begin:
            before = len(pieces)
            pieces.append(_Piece(texts[0][:begin], None))
        rests += [_Piece(text[begin:], before) for text in texts]
    row_of = [rest.before or 0 for rest in rests]  # the default is for a text that equals the common beginning
    # Rows that continue nothing come first, as given; then the others by length, so that neighbours are similar.
    for text in sorted(range(len(rests)), key=lambda i: 0 if rests[i].before is None else len(rests[i].tokens)):
        if rests[text].tokens:
            row_of[text] = len(pieces)
            pieces.append(rests[text])
    tokens = list(chain.from_iterable(piece.tokens for piece in pieces))
    lengths = [len(piece.tokens) for piece in pieces]
    continues = tuple(piece.before for piece in pieces)
    paths = Rows(tuple(lengths), device, continues).paths
    filler = -len(tokens) % MULTIPLE if device.type == "cpu" and len(tokens) >= FILLED_FROM else 0
    tokens += tokens[-1:] * filler
    lengths[-1] += filler
    rows = Rows(tuple(lengths), device, continues, filler)
    return tokens, rows, [paths[row] for row in row_of]


def common_prefix(texts: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens in which all texts agree."""
    length = 0
    for column in zip(*texts, strict=False):
        if len(set(column)) > 1:
            break
        length += 1
    return length


def send(values: Sequence[Any] | Tensor, device: torch.device) -> Tensor:
    """Copy ``values`` to ``device`` without waiting for it; a sequence becomes int64."""
    tensor = values if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.long)
    if device.type not in ("cpu", "meta"):
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
