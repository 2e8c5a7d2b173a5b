"""Steps are uniform draws whatever the lengths; lengths decide only the cut into micro-batches."""

import itertools
import random

import pytest
import torch

from moslora.data.encode import IGNORE_INDEX, Encoded
from moslora.data.steps import MICRO_BATCH_OVERHEAD, PAD_MULTIPLE, StepPlan, collate, cut, label_count


def plan(**changes: object) -> StepPlan:
    return StepPlan(**{"rows": 10, "global_batch_size": 4, "epochs": 3, "max_steps": None, "seed": 1} | changes)  # type: ignore[arg-type]


def test_every_epoch_is_a_permutation_and_only_the_last_step_is_smaller() -> None:
    steps = [plan()[step] for step in range(len(plan()))]
    assert [len(step) for step in steps] == [4] * 7 + [2]
    stream = list(itertools.chain(*steps))
    epochs = [stream[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_step_does_not_depend_on_those_asked_for_before() -> None:
    whole = plan()
    in_order = [whole[step] for step in range(len(whole))]
    assert [plan()[step] for step in reversed(range(8))] == in_order[::-1]
    assert [plan(seed=2)[step] for step in range(8)] != in_order


def test_max_steps_and_fractions_of_an_epoch() -> None:
    assert len(plan(max_steps=5)) == 5 and len(plan(epochs=None, max_steps=9)) == 9
    assert len(plan(epochs=0.5)) == 2 and [len(plan(epochs=0.5)[step]) for step in range(2)] == [4, 1]
    with pytest.raises(IndexError):
        plan()[8]


def test_the_paper_run_has_31932_steps() -> None:
    """170,420 rows less 120 for validation, 3 epochs, 16 a step."""
    assert len(plan(rows=170_300, global_batch_size=16)) == 31_932


def test_draws_are_uniform_over_long_and_short_rows() -> None:
    """Rows 0–49 short, 50–99 long: a step's share of long rows has the mean and variance of drawing blindly."""
    drawn = StepPlan(rows=100, global_batch_size=10, epochs=200, max_steps=None, seed=0)
    shares = torch.tensor([sum(row >= 50 for row in drawn[step]) for step in range(len(drawn))]).double()
    hypergeometric_variance = 10 * 0.25 * 90 / 99
    assert shares.mean() == pytest.approx(5, abs=1e-9)
    assert shares.var() == pytest.approx(hypergeometric_variance, rel=0.15)


def cost(lengths: list[int], batches: list[list[int]]) -> int:
    widths = [-(-max(lengths[i] for i in batch) // PAD_MULTIPLE) * PAD_MULTIPLE for batch in batches]
    return sum(len(batch) * width + MICRO_BATCH_OVERHEAD for batch, width in zip(batches, widths, strict=True))


def test_cut_is_the_cheapest_of_all_cuts() -> None:
    """Against every way of cutting the sorted rows into runs."""
    draw = random.Random(0)
    for _ in range(20):
        lengths = [draw.randint(5, 400) for _ in range(8)]
        order = sorted(range(8), key=lambda i: lengths[i])
        candidates = []
        for marks in itertools.product((False, True), repeat=7):
            ends = [i + 1 for i, mark in enumerate(marks) if mark] + [8]
            batches = [order[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
            if all(len(batch) <= 3 for batch in batches):
                candidates.append(cost(lengths, batches))
        mine = cut(lengths, micro_batch_size=3)
        assert sorted(itertools.chain(*mine)) == list(range(8))
        assert max(map(len, mine)) <= 3 and cost(lengths, mine) == min(candidates)


def test_collate_pads_on_the_right_with_ignored_labels() -> None:
    rows = [
        Encoded("a", "t", [5, 6, 7], [IGNORE_INDEX, 6, 7], truncated=False),
        Encoded("b", "t", list(range(9)), [IGNORE_INDEX] * 8 + [8], truncated=False),
    ]
    batch = collate(rows, pad_id=4, device=torch.device("cpu"))
    assert batch["input_ids"].shape == (2, 16)
    assert batch["input_ids"][0].tolist() == [5, 6, 7] + [4] * 13
    assert batch["attention_mask"].sum(1).tolist() == [3, 9]
    assert batch["labels"][0].tolist() == [IGNORE_INDEX, 6, 7] + [IGNORE_INDEX] * 13
    assert label_count(rows) == 3
    assert label_count([Encoded("c", "t", [5, 6], [5, 6], truncated=False)]) == 1, "nothing predicts the first"
