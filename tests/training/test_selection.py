"""The choice of the best step and of the end, without a model."""

import json
import math
from collections.abc import Sequence

import pytest

from moslora.recipe import TrainingSection
from moslora.runs.best import Best, best_of, in_words
from moslora.training.selection import Selection


def after(losses: Sequence[float]) -> Best:
    best = Best()
    for step, loss in enumerate(losses, start=1):
        best = best.after(step, loss)
    return best


@pytest.mark.parametrize(
    ("losses", "step", "since"),
    [
        ([], None, 0),
        ([3.0], 1, 0),
        ([3.0, 2.0, 2.5], 2, 1),
        ([3.0, 2.0, 2.0, 2.0], 2, 2),
        ([2.0, 3.0, 1.0], 3, 0),
        ([math.nan, 3.0], 2, 0),
        ([3.0, math.nan, math.inf], 1, 2),
        ([math.nan, math.inf], None, 2),
    ],
)
def test_the_first_of_the_lowest_losses_is_the_best(losses: Sequence[float], step: int | None, since: int) -> None:
    best = after(losses)
    assert (best.step, best.since, best.validations) == (step, since, len(losses))
    finite = [loss for loss in losses if math.isfinite(loss)]
    assert best.value == min(finite, default=None)


@pytest.mark.parametrize(
    ("accuracies", "step", "since"),
    [([0.0], 1, 0), ([0.2, 0.5, 0.4], 2, 1), ([0.2, 0.5, 0.5, 0.5], 2, 2), ([0.5, 0.2, 0.75], 3, 0)],
)
def test_the_first_of_the_highest_accuracies_is_the_best(accuracies: Sequence[float], step: int, since: int) -> None:
    best = Best("accuracy")
    for number, accuracy in enumerate(accuracies, start=1):
        best = best.after(number, accuracy)
    assert (best.step, best.since, best.value, best.last) == (step, since, max(accuracies), accuracies[-1])
    assert best_of(json.loads(json.dumps(best.facts))) == best
    assert best.facts["best"]["accuracy"] == best.value and "loss" not in best.facts["best"]
    assert f"by accuracy {100 * max(accuracies):.1f} %" in str(best)


def test_what_an_earlier_version_wrote_is_by_loss() -> None:
    written = {"step": 3, "loss": 1.5, "last_loss": None, "validations": 4, "since": 1}
    best = best_of({"best": written})
    assert best == Best("loss", 3, 1.5, None, 4, 1) and best.facts == {"best": written}


def test_what_is_written_is_read_back_to_the_bit() -> None:
    best = after([0.1 + 0.2, 1 / 3, math.nan])
    assert best_of(json.loads(json.dumps(best.facts, allow_nan=False))) == best
    assert best_of({}) is None


def run(selection: Selection, losses: Sequence[float]) -> tuple[list[int], int]:
    """The steps that were the best so far, and the step after which the run ends."""
    bests = []
    for step, loss in enumerate(losses, start=1):
        if selection.add(step, loss):
            bests.append(step)
        if selection.patience_ran_out:
            return bests, step
    return bests, len(losses)


@pytest.mark.parametrize(
    ("patience", "end"),
    [(1, 3), (2, 7), (3, 8), (4, 8), (None, 8)],
)
def test_patience_counts_validations_in_a_row(patience: int | None, end: int) -> None:
    losses = [5.0, 4.0, 4.5, 3.0, 2.0, 2.0, 2.5, 2.1]
    bests, ended = run(Selection(keeps_best=True, patience=patience), losses)
    assert ended == end
    assert bests == [step for step in (1, 2, 4, 5) if step <= end]


def test_steps_before_a_budget_is_reached_are_no_candidates_and_try_no_patience() -> None:
    selection = Selection(keeps_best=True, patience=2, first_candidate=4)
    assert run(selection, [1.0, 2.0, 3.0, 9.0, 8.0, 8.0, 8.5, 1.0]) == ([4, 5], 7)
    assert selection.best.validations == 4


def test_a_selection_goes_on_where_a_checkpoint_was_written() -> None:
    losses = [5.0, 4.0, 4.5, 4.6, 4.7]
    whole = Selection(keeps_best=True, patience=3)
    assert run(whole, losses) == ([1, 2], 5)
    before = Selection(keeps_best=True, patience=3)
    run(before, losses[:4])
    resumed = Selection(keeps_best=True, patience=3)
    resumed.restore(json.loads(json.dumps(before.facts)))
    assert not resumed.patience_ran_out
    resumed.add(5, losses[4])
    assert resumed.patience_ran_out and resumed.best == whole.best


@pytest.mark.parametrize(
    ("best", "start", "worse", "better"), [(Best("accuracy"), 0.4, 0.2, 0.6), (Best("loss"), 4.0, 5.0, 3.0)]
)
def test_a_best_step_that_is_worse_than_the_start_is_said_to_be(
    best: Best, start: float, worse: float, better: float
) -> None:
    """It is the result nevertheless, as the start is none."""
    selection = Selection(keeps_best=True, best=best)
    assert selection.add(2, worse)
    said = selection.remark(2, start=start)
    assert "the start" in said and ("below" if best.by == "accuracy" else "above") in said
    assert in_words(start, best.by) in said
    assert selection.remark(2, start=None) == selection.remark(2, start=worse) == "best so far"
    assert selection.add(4, better) and selection.remark(4, start=start) == "best so far"


def test_nothing_is_recorded_where_nothing_is_decided() -> None:
    selection = Selection.of(TrainingSection(), None)
    assert not selection.add(1, 2.0)
    assert selection.facts == {} and not selection.patience_ran_out and not selection.remark(1, start=None)
