"""Attention over kept keys and values against the formula, while rows enter, are continued and leave."""

import pytest
import torch

import flash_kit  # noqa: F401 — computes flash attention
from moslora.kernels import attention
from moslora.kernels.attention import GROUPED, PADDED, UNPADDED, attend_in_rows
from moslora.kernels.cache import KeyValueCache

HEADS = (4, 2, 2)
SIZE = 8
BEGINNINGS = [0, 1, 6]


def drawn(count):
    """q, k and v of so many tokens, ``(1, heads, count, size)``."""
    return [torch.randn(1, heads, count, SIZE, dtype=torch.float64) for heads in HEADS]


def formula(text, window):
    """Attention of a whole text, ``(T, heads, size)``."""
    q, k, v = text
    places = torch.arange(q.shape[2])
    distance = places[:, None] - places
    sees = distance >= 0
    if window is not None:
        sees &= distance < window
    scores = 0.3 * q[0] @ k[0].repeat_interleave(2, 0).transpose(1, 2)
    out = scores.masked_fill(~sees, -torch.inf).softmax(-1) @ v[0].repeat_interleave(2, 0)
    return out.transpose(0, 1)


class World:
    """The cache, and beside it all that each text has had: what all begin with first."""

    def __init__(self, beginning, window):
        torch.manual_seed(0)
        self.window = window
        self.module = torch.nn.Module()
        self.cache = KeyValueCache(torch.device("cpu"))
        self.texts = []
        self.first = drawn(beginning)
        if beginning:
            found = self.attend(self.cache.first_pass(beginning), self.first)
            assert torch.allclose(found, formula(self.first, window), rtol=0, atol=1e-12)

    def attend(self, step, tokens):
        if step.filler:
            tokens = [torch.cat([x, x[:, :, -1:].expand(-1, -1, step.filler, -1)], 2) for x in tokens]
        options = {"rows": step, "scaling": 0.3, "sliding_window": self.window}
        found, _ = attend_in_rows(self.module, *tokens, None, **options)
        return found[0]

    def step(self, *entering):
        """One token more of each text, and texts that enter; all that is found must be the formula's."""
        step = self.cache.next_pass(entering)
        added = [drawn(1) for _ in self.texts] + [drawn(count) for count in entering]
        tokens = [torch.cat(parts, 2) for parts in zip(*added, strict=True)]
        found = self.attend(step, tokens)
        self.texts += [self.first for _ in entering]
        self.texts = [
            [torch.cat(parts, 2) for parts in zip(text, new, strict=True)]
            for text, new in zip(self.texts, added, strict=True)
        ]
        places = []
        ends = []
        for text, new in zip(self.texts, added, strict=True):
            length = text[0].shape[2]
            count = new[0].shape[2]
            expected = formula(text, self.window)[-count:]
            assert torch.allclose(found[len(places) : len(places) + count], expected, rtol=0, atol=1e-12)
            places += range(length - count, length)
            ends.append(len(places) - 1)
        assert step.positions[0, : len(places)].tolist() == places
        assert step.last == ends

    def remove(self, row):
        self.cache.remove(row)
        self.texts[row] = self.texts[-1]
        self.texts.pop()
        assert [text[0].shape[2] - self.cache.beginning for text in self.texts] == self.cache.lengths


@pytest.mark.parametrize("beginning", BEGINNINGS)
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("kernel", [GROUPED, PADDED, UNPADDED])
def test_entering_and_leaving_rows_equal_the_formula(monkeypatch, kernel, window, beginning):
    monkeypatch.setattr(attention, "kernel", lambda *_: kernel)
    world = World(beginning, window)
    world.cache.resize(rows=3, room=12)
    world.step(5, 2)
    world.step()
    world.step(3)
    world.step()
    world.remove(0)
    world.step(1)
    world.remove(2)
    world.cache.resize(rows=4, room=9)
    world.step(2, 4)
    world.remove(1)
    world.step()


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_filler_tokens_are_not_cached(beginning):
    world = World(beginning, None)
    world.cache.resize(rows=4, room=600)
    world.step(3)
    world.step(510)
    world.step(20)
    world.step(7)


def test_nan_in_one_row_reaches_no_other():
    """Not those beside it, and not the one that takes its place, where its weights are 0."""
    world = World(0, None)
    world.cache.resize(rows=3, room=10)
    world.step(6, 2, 3)
    for layer in world.cache._layers.values():
        layer.keys[2:4] = torch.nan  # all of the second row's
        layer.values[2:4] = torch.inf
    world.remove(1)
    world.step()
    world.step(2)
    world.step()
