"""The choice of the best step and of the end, without a model."""

import json
import math
from collections.abc import Sequence

import pytest

from moslora.choices import BestBy
from moslora.runs.best import Best, best_of


def after(losses: Sequence[float]) -> Best:
    best = Best()
    for step, loss in enumerate(losses, start=1):
        best = best.after(step, loss)
    return best


@pytest.mark.parametrize(
    ("by", "values", "step", "since"),
    [
        ("loss", [], None, 0),
        ("loss", [3.0, 2.0, 2.5], 2, 1),
        ("loss", [3.0, 2.0, 2.0, 2.0], 2, 2),
        ("loss", [2.0, 3.0, 0.1 + 0.2], 3, 0),
        ("loss", [math.nan, 1 / 3], 2, 0),
        ("loss", [3.0, math.nan, math.inf], 1, 2),
        ("loss", [math.nan, math.inf], None, 2),
        ("accuracy", [0.0], 1, 0),
        ("accuracy", [0.2, 0.5, 0.5, 0.5], 2, 2),
        ("accuracy", [0.5, 0.2, 0.75], 3, 0),
    ],
)
def test_the_first_of_the_best_finite_values_is_the_best(
    by: BestBy, values: Sequence[float], step: int | None, since: int
) -> None:
    """And is read back to the bit."""
    best = Best(by)
    for number, value in enumerate(values, start=1):
        best = best.after(number, value)
    assert (best.step, best.since, best.validations) == (step, since, len(values))
    assert best.value == (None if step is None else values[step - 1])
    if values:
        assert best_of(json.loads(json.dumps(best.facts, allow_nan=False))) == best
        assert by in best.facts["best"]
