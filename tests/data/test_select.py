"""Caps and validation rows: random, reproducible, and never overlapping."""

from dataclasses import replace

import pytest

from evaluation_kit import make_examples
from moslora.data.select import hold_out, limit_rows
from moslora.errors import UsageError
from moslora.recipe import DataSection

EXAMPLES = make_examples("boolq", 40) + make_examples("obqa", 30)


def ids(examples):
    return [example.id for example in examples]


def counts(examples):
    """Of BoolQ and of OpenBookQA."""
    tasks = [example.task for example in examples]
    return [tasks.count("boolq"), tasks.count("obqa")]


def test_larger_limit_keeps_the_rows_of_a_smaller_one():
    small = limit_rows(EXAMPLES, rows=10, seed=1)
    large = limit_rows(EXAMPLES, rows=35, seed=1)
    assert counts(small) == [10, 10]
    assert counts(large) == [35, 30]
    assert set(ids(small)) < set(ids(large))
    assert ids(small) != ids(EXAMPLES)[:10] + ids(EXAMPLES)[40:50], "a draw, not the beginning"
    assert ids(small) == sorted(ids(small), key=ids(EXAMPLES).index), "in the source's order"
    assert ids(limit_rows(EXAMPLES, rows=10, seed=2)) != ids(small)
    assert len(limit_rows(EXAMPLES, rows={"boolq": 3}, seed=1)) == 33
    assert limit_rows(EXAMPLES, rows=None, seed=1) == EXAMPLES


def test_repetitions_of_validation_rows_are_not_trained_on():
    repeated = EXAMPLES + [replace(example, id=f"{example.id}-again") for example in EXAMPLES]
    train, validation = hold_out(repeated, validation_rows=12, seed=0)
    assert len(validation) == 12
    originals = {example.id.removesuffix("-again") for example in validation}
    assert not originals & {example.id.removesuffix("-again") for example in train}
    assert len(train) == 140 - 2 * len(originals)
    assert ids(hold_out(repeated, validation_rows=12, seed=1)[1]) != ids(validation)


def test_number_of_validation_rows():
    sizes = {None: [19, 1, 120, 120], 0.25: [47, 2, 300, 2_500], 7: [7, 7, 7, 7], 0: [0, 0, 0, 0]}
    for given, expected in sizes.items():
        section = DataSection(validation_rows=given)
        assert [section.held_out_of(rows) for rows in (188, 8, 1_200, 10_000)] == expected
    with pytest.raises(UsageError, match=r"data\.validation_rows = 8"):
        DataSection(validation_rows=8).held_out_of(8)


def test_something_has_to_be_left():
    with pytest.raises(UsageError, match=r"data\.validation_rows"):
        hold_out([replace(EXAMPLES[0], id=f"boolq/train/{row}") for row in range(6)], validation_rows=1, seed=0)
