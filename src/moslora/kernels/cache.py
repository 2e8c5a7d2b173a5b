"""Attention of rows that are generated token by token, with cached keys and values.

    out_i = Σ_j softmax_j(s · q_i · k_j) v_j   over the common beginning of all rows, and the row of i up to i

It replaces the cache of transformers, which pads the rows and copies the whole cache for every token. Here memory is
allocated once. The common beginning is stored and read once for all rows. A row that ends leaves at once, and another
row may enter in any pass with all its tokens.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from moslora.kernels.attention import attend
from moslora.kernels.rows import FILLED_FROM, MULTIPLE, Rows, send


class KeyValueCache:
    """Keys and values of the rows that are being generated, for every attention of a model.

    Attributes:
        beginning: number of tokens of the common beginning, which :meth:`first_pass` computes.
        lengths: number of tokens of each row after the beginning.
        rows: maximum number of rows.
        room: maximum number of tokens of a row.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.beginning = 0
        self.lengths: list[int] = []
        self.rows = 0
        self.room = 0
        self._layers: dict[tuple[nn.Module, int], _Layer] = {}

    def resize(self, rows: int, room: int) -> None:
        """Allocate memory for ``rows`` rows of ``room`` tokens each, and keep the current rows."""
        self.rows = rows
        self.room = room
        for layer in self._layers.values():
            layer.resize(rows, room, kept=len(self.lengths), longest=max(self.lengths, default=0))

    def next_pass(self, entering: Sequence[int]) -> "CachedPass":
        """Pass over one token of each row, followed by all tokens of the rows that enter.

        ``entering`` has the number of tokens of each entering row, at least one.
        """
        cached_pass = CachedPass(self, len(self.lengths), entering)
        self.lengths = [length + 1 for length in self.lengths]
        self.lengths += entering
        return cached_pass

    def first_pass(self, beginning: int) -> "CachedPass":
        """Pass over the common beginning of all rows, of ``beginning`` tokens."""
        cached_pass = CachedPass(self, 0, [beginning], is_beginning=True)
        self.beginning = beginning
        return cached_pass

    def remove(self, row: int) -> None:
        """Remove a row. The last row gets its number."""
        last = len(self.lengths) - 1
        if row < last:
            for layer in self._layers.values():
                for stored in (layer.keys, layer.values):
                    of_rows = stored.unflatten(0, (self.rows, layer.heads))
                    of_rows[row] = of_rows[last]
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    def layer(self, module: nn.Module, call: int, key: Tensor) -> "_Layer":
        """Stored keys and values of ``module`` for its call number ``call`` in a pass; created from the shape of
        ``key (key heads, T, size)``.

        Most attentions are called once; DiffLlama's is called twice, with different values.
        """
        if (module, call) not in self._layers:
            self._layers[module, call] = _Layer(key)
            self._layers[module, call].resize(self.rows, self.room)
        return self._layers[module, call]


class _Layer:
    """Keys and values of one attention with K key heads.

    Keys are stored as columns, by which a CPU multiplies twice as fast in 16 bits. Zeros follow a row's tokens: their
    weights are 0, but 0 times the leftovers of an earlier row might be NaN.
    """

    def __init__(self, key: Tensor) -> None:
        self.heads, _, self.size = key.shape
        self.keys = key.new_empty(0, self.size, 0)  # (rows · K, size, room)
        self.values = key.new_empty(0, 0, self.size)  # (rows · K, room, size)
        self.first_keys = key[:, :0]  # of the common beginning, (K, beginning, size)
        self.first_values = self.first_keys

    def resize(self, rows: int, room: int, *, kept: int = 0, longest: int = 0) -> None:
        """Allocate new memory, and copy the first ``kept`` rows, whose longest has ``longest`` tokens."""
        keys = self.keys
        values = self.values
        self.keys = keys.new_zeros(rows * self.heads, self.size, room)
        self.values = values.new_zeros(rows * self.heads, room, self.size)
        kept_heads = slice(kept * self.heads)
        self.keys[kept_heads, :, :longest] = keys[kept_heads, :, :longest]
        self.values[kept_heads, :longest] = values[kept_heads, :longest]


class CachedPass:
    """Pass with a cache: one token of each of the ``continued`` rows, followed by all tokens of the entering rows.

    It takes the place of the `Rows` of a pass without a cache. :class:`KeyValueCache` creates it.
    """

    def __init__(
        self, cache: KeyValueCache, continued: int, entering: Sequence[int], *, is_beginning: bool = False
    ) -> None:
        self.cache = cache
        self.device = cache.device
        self.continued = continued
        self.is_beginning = is_beginning
        self.places = list(cache.lengths)  # of each continued row's token in its row
        self.filler = 0
        count = continued + sum(entering)
        if self.device.type == "cpu" and entering and count >= FILLED_FROM:
            self.filler = -count % MULTIPLE
        self.entering: Rows | None = None
        if entering:
            lengths = (*entering[:-1], entering[-1] + self.filler)
            self.entering = Rows(lengths, self.device, filler=self.filler, preceding=cache.beginning)
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
        """Place of each row's last token in the pass."""
        ends = list(range(self.continued))
        if self.entering is not None:
            ends += [self.continued + end - 1 for _, end in self.entering.bounds]
            ends[-1] -= self.filler
        return ends

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None
    ) -> Tensor:
        """Attention of ``module``, shape ``(T, heads, size)``; also over the keys and values of earlier passes.

        ``query`` is ``(heads, T, size)``, ``key`` and ``value`` ``(key heads, T, size)``.
        """
        layer = self.cache.layer(module, self._calls[module], key)
        self._calls[module] += 1
        count = self.continued
        if self.is_beginning:
            layer.first_keys = key
            layer.first_values = value
        else:
            self._keep(layer, key, value)
        outputs = []
        if count:
            outputs.append(self._over_cache(layer, query[:, :count] * scaling, window))
        if self.entering is not None:
            k = key[:, count:]
            v = value[:, count:]
            if self.entering.preceding:
                k = torch.cat([layer.first_keys, k], 1)
                v = torch.cat([layer.first_values, v], 1)
            outputs.append(attend(query[:, count:], k, v, self.entering, scaling, window))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _keep(self, layer: "_Layer", key: Tensor, value: Tensor) -> None:
        """Store ``key`` and ``value (K, T, size)`` of the pass, without those of filler tokens."""
        if self.entering is not None:
            entered = slice(self.continued * layer.heads, (self.continued + len(self.entering.lengths)) * layer.heads)
            layer.keys[entered] = 0
            layer.values[entered] = 0
        real = key.shape[1] - self.filler
        heads, places = self._where(layer.heads)
        layer.keys[heads, :, places] = key[:, :real].transpose(0, 1).reshape(-1, layer.size)
        layer.values[heads, places] = value[:, :real].transpose(0, 1).reshape(-1, layer.size)

    def _over_cache(self, layer: _Layer, query: Tensor, window: int | None) -> Tensor:
        """Attention of the continued rows' tokens, from ``(heads, n, size)`` to ``(n, heads, size)``.

        Heads that share a key are multiplied with it in one product; so are all rows with the keys of the common
        beginning. The softmax is computed in float32.
        """
        heads, count, size = query.shape
        by_key = (count, layer.heads, heads // layer.heads)  # n, K, heads that share a key
        continued = slice(count * layer.heads)
        length = max(self.places) + 1
        q = query.transpose(0, 1).reshape(count * layer.heads, -1, size)
        scores = (q @ layer.keys[continued, :, :length]).view(*by_key, length)
        first = self.cache.beginning
        if first:
            together = q.view(*by_key, size).transpose(0, 1).reshape(layer.heads, -1, size)  # (K, n · …, size)
            of_first = together @ layer.first_keys.transpose(1, 2)
            of_first = of_first.view(layer.heads, count, -1, first).transpose(0, 1)
            scores = torch.cat([of_first, scores], -1)
        weights = (scores + self._mask(window)).softmax(-1).to(query.dtype)
        own = weights[..., first:].reshape(count * layer.heads, -1, length)
        out = (own @ layer.values[continued, :length]).view(*by_key, size)
        if first:
            together = weights[..., :first].transpose(0, 1).reshape(layer.heads, -1, first)
            of_first = (together @ layer.first_values).view(layer.heads, count, -1, size)
            out = out + of_first.transpose(0, 1)
        return out.flatten(1, 2)

    def _where(self, key_heads: int) -> tuple[Tensor, Tensor]:
        """For each token of the pass and each key head: its head, and its place in the cache, int64 ``(T · K,)``
        each."""
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
        """Additive mask: 0 where the new token of one of n continued rows sees a key, −∞ elsewhere.

        float32 of shape ``(n, 1, 1, keys)``.
        """
        if window not in self._masks:
            first = self.cache.beginning
            own_place = torch.tensor(self.places).unsqueeze(1)  # (n, 1)
            places = torch.arange(-first, max(self.places) + 1)  # of the keys; those of the beginning are negative
            distance = own_place - places
            seen = distance >= 0
            if window is not None:
                seen &= distance < window
            mask = torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)
            self._masks[window] = send(mask[:, None, None], self.device)
        return self._masks[window]
