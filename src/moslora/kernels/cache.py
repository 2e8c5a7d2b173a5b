"""Attention of rows that are written token by token, whose keys and values are kept from pass to pass.

    out_i = Σ_j softmax_j(s · q_i · k_j) v_j   over what all rows begin with, and the row of i up to i

Replaces the cache of transformers, which pads the rows, and copies all that it has with every token. Here memory is
taken once; what all rows begin with is kept, and read, once for all; a row that ends leaves at once, and another may
enter in any pass, with all its tokens.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from moslora.kernels.attention import attend
from moslora.kernels.rows import FILLED_FROM, MULTIPLE, Rows, send


class KeyValueCache:
    """Keys and values of the rows that are being written, for every attention of a model.

    Attributes:
        beginning: number of tokens that all rows begin with; a pass over these alone comes first.
        lengths: tokens of each row behind the beginning.
        rows: number of rows that there is room for.
        room: number of tokens that there is room for in each row.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.beginning = 0
        self.lengths: list[int] = []
        self.rows = 0
        self.room = 0
        self._layers: dict[tuple[nn.Module, int], _Layer] = {}

    def resize(self, rows: int, room: int) -> None:
        """Makes room for so many rows and tokens of each; those that are there stay."""
        self.rows = rows
        self.room = room
        for layer in self._layers.values():
            layer.resize(rows, room, kept=len(self.lengths), longest=max(self.lengths, default=0))

    def next_pass(self, entering: Sequence[int]) -> "CachedPass":
        """The pass over one token of each row, then over the tokens of the rows that enter behind them.

        ``entering`` has the number of tokens of each of these, at least one.
        """
        made = CachedPass(self, len(self.lengths), entering)
        self.lengths = [length + 1 for length in self.lengths]
        self.lengths += entering
        return made

    def first_pass(self, beginning: int) -> "CachedPass":
        """The pass over the tokens that all rows begin with."""
        made = CachedPass(self, 0, [beginning], is_beginning=True)
        self.beginning = beginning
        return made

    def remove(self, row: int) -> None:
        """Takes a row out; the last one gets its number."""
        last = len(self.lengths) - 1
        if row < last:
            for layer in self._layers.values():
                for kept in (layer.keys, layer.values):
                    of_rows = kept.unflatten(0, (self.rows, layer.heads))
                    of_rows[row] = of_rows[last]
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    def layer(self, module: nn.Module, call: int, key: Tensor) -> "_Layer":
        """What is kept for ``module`` at its call of that number in a pass, of which ``key (key heads, T, size)`` are
        keys. Most are called once; DiffLlama's attention twice, with other values."""
        place = (module, call)
        if place not in self._layers:
            self._layers[place] = _Layer(key)
            self._layers[place].resize(self.rows, self.room)
        return self._layers[place]


class _Layer:
    """The keys and values of one attention with K key heads.

    Keys are kept as columns: a CPU then multiplies by those of 16 bits twice as fast. Behind a row's tokens there are
    zeros: its weights are 0 there, and 0 times what an earlier row has left might be no number.
    """

    def __init__(self, key: Tensor) -> None:
        self.heads, _, self.size = key.shape
        self.keys = key.new_empty(0, self.size, 0)  # (rows · K, size, room)
        self.values = key.new_empty(0, 0, self.size)  # (rows · K, room, size)
        self.first_keys = key[:, :0]  # of what all rows begin with, (K, beginning, size)
        self.first_values = self.first_keys

    def resize(self, rows: int, room: int, *, kept: int = 0, longest: int = 0) -> None:
        """Makes room, and keeps the first rows with as many tokens as the longest of them."""
        keys = self.keys
        values = self.values
        self.keys = keys.new_zeros(rows * self.heads, self.size, room)
        self.values = values.new_zeros(rows * self.heads, room, self.size)
        those = slice(kept * self.heads)
        self.keys[those, :, :longest] = keys[those, :, :longest]
        self.values[those, :longest] = values[those, :longest]


class CachedPass:
    """One pass: a token of each of the ``continued`` rows, then the tokens of those that enter, end to end.

    Stands for the `Rows` of a pass without a cache. Made by :class:`KeyValueCache`.
    """

    def __init__(
        self, cache: KeyValueCache, continued: int, entering: Sequence[int], *, is_beginning: bool = False
    ) -> None:
        self.cache = cache
        self.device = cache.device
        self.continued = continued
        self.is_beginning = is_beginning
        self.places = list(cache.lengths)  # of the continued rows' tokens, in their rows
        self.filler = 0
        count = continued + sum(entering)
        if self.device.type == "cpu" and entering and count >= FILLED_FROM:
            self.filler = -count % MULTIPLE
        self.entering: Rows | None = None
        if entering:
            lengths = (*entering[:-1], entering[-1] + self.filler)
            self.entering = Rows(lengths, self.device, filler=self.filler, known=cache.beginning)
        self._kept_at: dict[int, tuple[Tensor, Tensor]] = {}
        self._masks: dict[int | None, Tensor] = {}
        self._calls: Counter[nn.Module] = Counter()

    @cached_property
    def positions(self) -> Tensor:
        """Each token's place in its text, int64 of shape ``(1, T)``."""
        places = [self.cache.beginning + place for place in self.places]
        continued = send([places], self.device)
        if self.entering is None:
            return continued
        return torch.cat([continued, self.entering.positions], 1)

    @property
    def last(self) -> list[int]:
        """Where the last token of each row lies in the pass."""
        ends = list(range(self.continued))
        if self.entering is not None:
            ends += [self.continued + end - 1 for _, end in self.entering.bounds]
            ends[-1] -= self.filler
        return ends

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None
    ) -> Tensor:
        """See `moslora.kernels.attention.Remembering`."""
        layer = self.cache.layer(module, self._calls[module], key)
        self._calls[module] += 1
        count = self.continued
        if self.is_beginning:
            layer.first_keys = key
            layer.first_values = value
        else:
            self._keep(layer, key, value)
        found = []
        if count:
            found.append(self._over_cache(layer, query[:, :count] * scaling, window))
        if self.entering is not None:
            k = key[:, count:]
            v = value[:, count:]
            if self.entering.known:
                k = torch.cat([layer.first_keys, k], 1)
                v = torch.cat([layer.first_values, v], 1)
            found.append(attend(query[:, count:], k, v, self.entering, scaling, window))
        if len(found) == 1:
            return found[0]
        return torch.cat(found)

    def _keep(self, layer: "_Layer", key: Tensor, value: Tensor) -> None:
        """Keeps the keys and values of the pass, but for what fills it up."""
        if self.entering is not None:
            entered = slice(self.continued * layer.heads, (self.continued + len(self.entering.lengths)) * layer.heads)
            layer.keys[entered] = 0
            layer.values[entered] = 0
        real = key.shape[1] - self.filler
        heads, places = self._where(layer.heads)
        layer.keys[heads, :, places] = key[:, :real].transpose(0, 1).reshape(-1, layer.size)
        layer.values[heads, places] = value[:, :real].transpose(0, 1).reshape(-1, layer.size)

    def _over_cache(self, layer: _Layer, query: Tensor, window: int | None) -> Tensor:
        """Attention of the continued rows' tokens, ``(heads, n, size)`` to ``(n, heads, size)``.

        As `moslora.kernels.attention` writes it out: the heads that share a key are one product with it, and so are all
        rows with what they begin with; the softmax is taken in float32.
        """
        heads, count, size = query.shape
        by_key = (count, layer.heads, heads // layer.heads)  # n, K, heads that share a key
        those = slice(count * layer.heads)
        length = max(self.places) + 1
        q = query.transpose(0, 1).reshape(count * layer.heads, -1, size)
        scores = (q @ layer.keys[those, :, :length]).view(*by_key, length)
        first = self.cache.beginning
        if first:
            together = q.view(*by_key, size).transpose(0, 1).reshape(layer.heads, -1, size)  # (K, n · …, size)
            of_first = together @ layer.first_keys.transpose(1, 2)
            of_first = of_first.view(layer.heads, count, -1, first).transpose(0, 1)
            scores = torch.cat([of_first, scores], -1)
        weights = (scores + self._mask(window)).softmax(-1).to(query.dtype)
        own = weights[..., first:].reshape(count * layer.heads, -1, length)
        out = (own @ layer.values[those, :length]).view(*by_key, size)
        if first:
            together = weights[..., :first].transpose(0, 1).reshape(layer.heads, -1, first)
            of_first = (together @ layer.first_values).view(layer.heads, count, -1, size)
            out = out + of_first.transpose(0, 1)
        return out.flatten(1, 2)

    def _where(self, key_heads: int) -> tuple[Tensor, Tensor]:
        """For each token of the pass and each of its key heads, the head among all in the cache and the place there;
        both int64 of shape ``(T · K,)``."""
        if key_heads not in self._kept_at:
            rows = list(range(self.continued))
            places = list(self.places)
            if self.entering is not None:
                for row, (begin, end) in enumerate(self.entering.bounds, start=self.continued):
                    rows += [row] * (end - begin)
                    places += range(end - begin)
            real = len(rows) - self.filler
            first_heads = torch.tensor(rows[:real]).unsqueeze(1) * key_heads
            heads = (first_heads + torch.arange(key_heads)).flatten()
            of_heads = torch.tensor(places[:real]).repeat_interleave(key_heads)
            self._kept_at[key_heads] = (send(heads, self.device), send(of_heads, self.device))
        return self._kept_at[key_heads]

    def _mask(self, window: int | None) -> Tensor:
        """0 where a continued row's token sees a key and −∞ elsewhere, float32 of shape ``(n, 1, 1, keys)``."""
        if window not in self._masks:
            first = self.cache.beginning
            own_place = torch.tensor(self.places).unsqueeze(1)  # (n, 1)
            places = torch.arange(-first, max(self.places) + 1)  # of the keys, from the end of the beginning on
            distance = own_place - places
            seen = distance >= 0
            if window is not None:
                seen &= distance < window
            mask = torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)
            self._masks[window] = send(mask[:, None, None], self.device)
        return self._masks[window]
