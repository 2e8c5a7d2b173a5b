"""Batches that depend on nothing but the question ids."""

import random

import pytest

from evaluation_kit import make_examples
from moslora.evaluation.batches import BLOCK_SIZE, batches, blocks, canonical_order


def test_order_depends_on_ids_alone() -> None:
    examples = make_examples("piqa", 300)
    shuffled = random.Random(1).sample(examples, len(examples))
    assert canonical_order(shuffled) == canonical_order(examples) != examples


@pytest.mark.parametrize("limit", [1, 100, BLOCK_SIZE, 200, 300, 999, None])
def test_a_limit_takes_the_beginning_and_never_moves_a_block(limit: int | None) -> None:
    examples = make_examples("piqa", 300)
    whole = list(blocks(examples, limit=None, exact=False))
    cut = list(blocks(examples, limit=limit, exact=False))
    assert [block.computed for block in cut] == [block.computed for block in whole[: len(cut)]]
    wanted = [example for block in cut for example in block.wanted]
    assert wanted == canonical_order(examples)[:limit]


def test_exact_arithmetic_computes_only_what_is_wanted() -> None:
    for block in blocks(make_examples("piqa", 300), limit=200, exact=True):
        assert block.computed == block.wanted


def test_batches_hold_similar_lengths_and_every_sequence_once() -> None:
    lengths = random.Random(0).choices(range(5, 90), k=101)
    cut = list(batches(lengths, 500))
    assert sorted(i for batch in cut for i in batch) == list(range(101))
    assert [lengths[i] for batch in cut for i in batch] == sorted(lengths, reverse=True)
    assert [len(batch) for batch in cut[:-1]] == [500 // lengths[batch[0]] for batch in cut[:-1]]
    assert [len(batch) for batch in batches(lengths, 1)] == [1] * 101
