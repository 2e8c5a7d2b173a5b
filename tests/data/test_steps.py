"""Steps are uniform draws whatever the lengths; lengths decide only the cut into micro-batches."""

import itertools
import random
from collections import Counter

import pytest
import torch

from moslora.data.encode import IGNORE_INDEX, Encoded
from moslora.data.steps import StepPlan, collate, group_by_length, label_count, largest_micro_batch, micro_batches_of
from moslora.recipe import TrainingSection


def plan(rows=10, seed=1, **changes):
    return StepPlan(TrainingSection(**{"global_batch_size": 4, "epochs": 3} | changes), rows=rows, seed=seed)


def test_epochs_are_permutations():
    steps = [plan()[step] for step in range(len(plan()))]
    assert [len(step) for step in steps] == [4] * 7 + [2]
    stream = list(itertools.chain(*steps))
    epochs = [stream[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_steps_are_independent_of_earlier_requests():
    whole = plan()
    in_order = [whole[step] for step in range(len(whole))]
    assert [plan()[step] for step in reversed(range(8))] == in_order[::-1]
    assert [plan(seed=2)[step] for step in range(8)] != in_order


def test_max_steps_and_fractions_of_an_epoch():
    """The paper's run has 170,420 rows less 120 for validation, 3 epochs, 16 a step."""
    assert len(plan(rows=170_300, global_batch_size=16)) == 31_932
    assert len(plan(max_steps=5)) == 5 and len(plan(epochs=None, max_steps=9)) == 9
    assert len(plan(epochs=0.5)) == 2 and [len(plan(epochs=0.5)[step]) for step in range(2)] == [4, 1]
    with pytest.raises(IndexError):
        plan()[8]


@pytest.mark.parametrize(("epochs", "rows", "steps"), [(1.1, 1_600, 110), (0.55, 1_600, 55), (1e-3, 32_000, 2)])
def test_fraction_of_an_epoch_is_decimal(epochs, rows, steps):
    """1.1 · 1,600 in binary is a little above 1,760: one row more, alone in a step of its own."""
    found = plan(epochs=epochs, rows=rows, global_batch_size=16)
    assert len(found) == steps and len(found[steps - 1]) == 16


@pytest.mark.parametrize("changes", [{}, {"epochs": 0.3}, {"epochs": None, "max_steps": 9}, {"rows": 3}])
def test_draws_are_counted_without_drawing_them(monkeypatch, changes):
    """After each number of steps, by their kinds' order; what no step has drawn is not there."""
    steps = plan(**changes)
    kinds = ["b", "a", "b", "c", "a", "b", "b", "c", "b", "b"][: steps.rows]
    drawn = [[kinds[row] for row in steps[step]] for step in range(len(steps))]
    monkeypatch.delattr(StepPlan, "__getitem__")
    for done in range(len(steps) + 1):
        counts = Counter(itertools.chain(*drawn[:done]))
        expected = [(kind, counts[kind]) for kind in dict.fromkeys(kinds) if kind in counts]
        assert [*steps.draws(kinds, steps=done).items()] == expected


def test_draws_are_uniform_over_long_and_short_rows():
    """Rows 0–49 short, 50–99 long: a step's share of long rows has the mean and variance of drawing blindly."""
    drawn = plan(rows=100, global_batch_size=10, epochs=200, seed=0)
    counts = []
    for step in range(len(drawn)):
        long = [row for row in drawn[step] if row >= 50]
        counts.append(len(long))
    shares = torch.tensor(counts).double()
    hypergeometric_variance = 10 * 0.25 * 90 / 99
    assert shares.mean() == pytest.approx(5, abs=1e-9)
    assert shares.var() == pytest.approx(hypergeometric_variance, rel=0.15)


def test_micro_batches_group_rows_of_similar_length():
    draw = random.Random(0)
    for _ in range(20):
        lengths = [draw.randint(5, 400) for _ in range(16)]
        batches = group_by_length(lengths, tokens=500)
        rows = list(itertools.chain(*batches))
        assert sorted(rows) == list(range(16))
        assert [lengths[row] for row in rows] == sorted(lengths)
        sizes = [sum(lengths[row] for row in batch) for batch in batches]
        assert max(sizes) <= 500
        for size, after in zip(sizes[:-1], batches[1:], strict=True):
            assert size + lengths[after[0]] > 500, "it could have taken the first row of the next"
    assert group_by_length([9, 700, 3], tokens=500) == [[2, 0], [1]], "a row that is too long is by itself"


def test_processes_have_equally_many_micro_batches():
    """One long row is a pass by itself; with three processes for two rows the third has only empty passes."""
    lengths = (40, 5, 6, 30, 8, 35, 7)
    rows = [Encoded(str(n), "boolq", [1] * n, [1] * n, truncated=False) for n in lengths]
    for drawn, processes in ((rows, 2), (rows, 3), (rows[:2], 3)):
        found = [micro_batches_of(drawn, process=n, processes=processes, tokens=40) for n in range(processes)]
        assert len({len(batches) for batches in found}) == 1
        for process, batches in enumerate(found):
            assert sorted(itertools.chain(*batches), key=drawn.index) == drawn[process::processes]
    assert found[2] == [[]]
    empty = collate([], device=torch.device("cpu"), tasks=("boolq",))
    assert empty.input_ids.shape == (1, 1) and empty.tasks.tolist() == [[1]] and not len(empty.labels)


def test_largest_micro_batch_of_any_process():
    """16 rows of 1,500 tokens are passes of 7,500; one of 12,000 beside short ones is a larger one, by itself."""
    assert largest_micro_batch([1500] * 16, processes=1, tokens=8192) == 7500
    assert largest_micro_batch([100] * 15 + [12_000], processes=1, tokens=8192) == 12_000
    rng = random.Random(0)
    for processes in (1, 2, 3, 20):
        lengths = [rng.randint(1, 300) for _ in range(16)]
        rows = [Encoded(str(n), "boolq", [1] * n, [1] * n, truncated=False) for n in lengths]
        sizes = []
        for process in range(processes):
            for batch in micro_batches_of(rows, process=process, processes=processes, tokens=500):
                sizes.append(sum(len(row.input_ids) for row in batch))
        assert largest_micro_batch(lengths, processes=processes, tokens=500) == max(sizes)


def test_collate_concatenates_rows_and_finds_labels():
    rows = [
        Encoded("a", "boolq", [5, 6, 7], [IGNORE_INDEX, 6, 7], truncated=False),
        Encoded("b", "none", [1, 2], [1, IGNORE_INDEX], truncated=False),
        Encoded("c", "obqa", [8, 9], [8, 9], truncated=False),
    ]
    batch = collate(rows, device=torch.device("cpu"), tasks=("obqa", "piqa", "boolq"))
    assert batch.input_ids.tolist() == [[5, 6, 7, 1, 2, 8, 9]] and batch.rows.lengths == (3, 2, 2)
    assert batch.rows.positions.tolist() == [[0, 1, 2, 0, 1, 0, 1]]
    assert batch.tasks.tolist() == [[2, 2, 2, 3, 3, 0, 0]]
    # Nothing predicts a row's first token.
    assert batch.predicted_from == [0, 1, 5] and batch.labels.tolist() == [6, 7, 9]
    assert label_count(rows) == 3
