"""The sizes of the quickstart: what they take of the recipe, and which one a machine gets."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from moslora import quickstart_sizes as module
from moslora.choices import SizeName
from moslora.quickstart_sizes import SIZES, largest_in_time, size_of, trained_tokens_per_second
from moslora.recipe import load_recipe


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_a_size_takes_its_part_of_the_rows_and_whole_blocks_of_questions(size: Any) -> None:
    full = load_recipe("smollm2-135m")
    recipe = load_recipe("smollm2-135m", size.overrides(full))
    assert isinstance(full.data.rows, dict) and isinstance(recipe.data.rows, dict)
    for task, rows in full.data.rows.items():
        assert abs(recipe.data.rows[task] - rows / size.part) <= 0.5
    assert recipe.evaluation.limit == size.questions
    assert size.questions % 64 == 0, "questions are computed together by 64"
    assert size_of(recipe) == size


@pytest.mark.parametrize(("speed", "name"), [(1e6, "full"), (400.0, "half"), (1.0, "third")])
def test_a_machine_gets_the_largest_size_that_it_takes_in_five_minutes(speed: float, name: SizeName) -> None:
    chosen = largest_in_time(speed)
    assert chosen.name == name
    larger = [size for size in SIZES.values() if size.part < chosen.part]
    assert all(size.seconds(speed) > module.SECONDS_TO_CHOOSE for size in larger)


def test_the_measurement_counts_the_tokens_of_one_step(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that stands still but in the passes over the step's rows, where it goes on by a second each."""
    now = [0.0]
    steps: list[int] = []

    def accumulate(parts: Any, rows: Sequence[Any]) -> None:
        now[0] += 1.0
        steps.append(sum(len(row.input_ids) for row in rows))

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(module, "accumulate", accumulate)
    speed = trained_tokens_per_second(load_recipe(world / "recipe.yaml"))
    warm_up, step = steps
    assert speed == step > warm_up > 0
