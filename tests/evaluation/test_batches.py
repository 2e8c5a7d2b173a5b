"""Batches that depend on nothing but the question ids."""

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from evaluation_kit import make_examples
from moslora.evaluation.batches import BLOCK_SIZE, blocks
from moslora.evaluation.choice import Choice


def chained(lists: Iterable[Sequence[Any]]) -> list[Any]:
    return list(chain.from_iterable(lists))


def test_order_depends_on_ids_alone() -> None:
    examples = make_examples("piqa", 300)
    shuffled = random.Random(1).sample(examples, len(examples))
    expected = sorted(examples, key=lambda example: hashlib.sha256(example.id.encode()).digest())
    assert expected != examples
    for given in (examples, shuffled):
        assert chained(block.wanted for block in blocks(given, limit=None, exact=False)) == expected


@pytest.mark.parametrize("limit", [1, 100, BLOCK_SIZE, 200, 300, 999, None])
def test_a_limit_takes_the_beginning_and_never_moves_a_block(limit: int | None) -> None:
    examples = make_examples("piqa", 300)
    whole = list(blocks(examples, limit=None, exact=False))
    cut = list(blocks(examples, limit=limit, exact=False))
    assert [block.computed for block in cut] == [block.computed for block in whole[: len(cut)]]
    assert chained(block.wanted for block in cut) == chained(block.computed for block in whole)[:limit]


def test_exact_arithmetic_computes_only_what_is_wanted() -> None:
    for block in blocks(make_examples("piqa", 300), limit=200, exact=True):
        assert block.computed == block.wanted


def test_batches_hold_similar_lengths_and_every_question_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest come first, and every output is that of its own question."""
    lengths = random.Random(0).choices(range(5, 90), k=101)
    batches: list[list[int]] = []

    def compute(_: Choice, batch: list[int]) -> Callable[[], list[int]]:
        batches.append(batch)
        return lambda: [-question for question in batch]

    scorer = object.__new__(Choice)
    monkeypatch.setattr(Choice, "length", lambda _, question: lengths[question])
    monkeypatch.setattr(Choice, "model", SimpleNamespace(device=torch.device("cpu")), raising=False)
    monkeypatch.setattr(Choice, "compute", compute)
    for tokens in (500, 1):
        batches.clear()
        assert scorer.in_batches(range(101), tokens=tokens)() == [-question for question in range(101)]
        assert [lengths[question] for question in chained(batches)] == sorted(lengths, reverse=True)
        for batch in batches[:-1]:
            assert len(batch) == max(1, tokens // lengths[batch[0]])
