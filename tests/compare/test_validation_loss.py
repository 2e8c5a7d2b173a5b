"""The validation loss of runs as an outcome: paired by seed, with nothing known of other questions."""

import numpy as np
import pytest
from scipy import stats

from compare_kit import base, base_row, drawn, row, write_experiment
from message_kit import in_order, says
from moslora.compare.arms import HELD_OUT
from moslora.compare.comparison import compare_paths
from moslora.compare.conclusion import lines
from moslora.compare.display import tables
from moslora.compare.margin import Margin
from moslora.compare.statistics import effects
from moslora.errors import UsageError
from moslora.experiment.tables import mean_over_seeds
from moslora.runs.scores import MACRO

OUTCOME = "validation_loss"


def experiment(folder, losses):
    """Write an experiment of a base and two arms with these losses by seed; ``None`` for a run without one."""
    rows = [base_row(base())]
    for arm, by_seed in losses.items():
        rows += [row(arm, drawn(seed, arm=arm), validation_loss=loss) for seed, loss in by_seed.items()]
    first, second = losses
    return write_experiment(folder, rows, contrasts=[(first, second)])


def test_seeds_are_paired_as_in_a_t_test(tmp_path):
    draw = np.random.default_rng(0)
    lora = draw.normal(3.0, 0.1, 6)
    other = lora + draw.normal(0.02, 0.01, 6)
    folder = experiment(tmp_path / "e", {"lora": dict(enumerate(lora)), "other": dict(enumerate(other))})
    found = compare_paths([folder], outcome=OUTCOME)
    assert found.main is not None and list(found.main.y) == [HELD_OUT] and found.main.gains is None
    effect = found.main.effects[MACRO]
    test = stats.ttest_rel(other, lora)
    assert effect.difference == pytest.approx(np.mean(other - lora))
    assert effect.p == pytest.approx(test.pvalue, rel=1e-6)
    assert effect.interval == pytest.approx(tuple(test.confidence_interval()), rel=1e-6)
    told = "\n".join(lines(found))
    assert says(told, "other predicts held-out rows 0.0", "nats per token WORSE than lora (95 % over 6 seeds: 0.0")
    ((_, row),) = tables(found)
    assert row[0] == HELD_OUT and row[2:4] == [f"{lora.mean():.4f}", f"{other.mean():.4f}"]
    arm = next(arm for arm in compare_paths([folder]).arms if arm.name == "lora")
    text = mean_over_seeds(list(arm.runs.values()), OUTCOME)
    assert text == f"{lora.mean():.4f} ± {stats.sem(lora):.4f}"


def test_missing_losses_are_refused(tmp_path):
    for number, (losses, margin, *named) in enumerate(
        (
            ({"lora": {0: 3.0}, "other": {0: 3.1}}, None, "lora and other: too few seeds in common"),
            ({"lora": {0: 3.0, 1: 3.0}, "other": {0: 3.1, 1: None}}, None, "other-0.001-1: validation_loss"),
            ({"lora": {0: 3.0, 1: 3.1}, "other": {0: 3.1, 1: 3.3}}, Margin(0.2, of_gain=True), "--margin 20%"),
        )
    ):
        folder = experiment(tmp_path / str(number), losses)
        with pytest.raises(UsageError, match=in_order(*named)):
            compare_paths([folder], outcome=OUTCOME).within(margin)


def test_equal_losses_have_no_error():
    effect = effects({HELD_OUT: np.zeros((3, 1))}, binary=False)[MACRO]
    assert effect.interval == (0, 0) and effect.p == 1
