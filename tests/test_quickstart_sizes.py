"""The sizes of the quickstart: what they take of the recipe, and which one a machine gets."""

from typing import Any

import pytest

from moslora import quickstart_sizes as module
from moslora.choices import SizeName
from moslora.quickstart_sizes import SIZES, largest_in_time, size_of
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
