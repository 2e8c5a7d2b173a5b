"""Margins that are a share of the gain: Fieller's interval in closed form, error rates, and what is said."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from cli_kit import run
from compare_kit import (
    WIDE,
    answered_as,
    asked_as,
    base,
    base_row,
    drawn,
    drawn_arms,
    with_evaluation,
    write_experiment,
)
from message_kit import says
from moslora.compare.arms import Arm
from moslora.compare.compared_run import evaluations_of
from moslora.compare.comparison import compare_arms, compare_paths
from moslora.compare.conclusion import lines
from moslora.compare.contrast import Contrast
from moslora.compare.display import tables
from moslora.compare.equality import p_unequal, share_interval
from moslora.compare.gains import gain_of, shared_base
from moslora.compare.index import EXPERIMENT, read_index
from moslora.compare.margin import Margin, read_margin
from moslora.compare.statistics import LEVEL
from moslora.errors import UsageError
from moslora.runs.outcomes import OUTCOMES
from moslora.runs.scores import MACRO

GAINS = {"lora": 0.10, "same": 0.10, "other": 0.17}


def contrast(before, after, of_base, outcome="log_probability"):
    """Return a contrast of two arms, outcomes of shape ``(S, n)``, with their base, shape ``(n,)``."""
    return Contrast(
        before="lora",
        after="b",
        outcome=OUTCOMES[outcome],
        seeds=len(before),
        y={"obqa": (before, after)},
        majority={},
        clusters={},
        base={"obqa": of_base},
    )


def fieller(d, g):
    """Return the shares r with |D − r G| ≤ t se(d − r g), of independent pairs (Fieller 1954): roots of a quadratic."""
    n = len(d)
    t = stats.t.ppf(1 - LEVEL, n - 1)
    (v_d, v_dg), (_, v_g) = np.cov(d, g) / n
    linear = 2 * (t**2 * v_dg - d.mean() * g.mean())
    low, high = sorted(np.roots([g.mean() ** 2 - t**2 * v_g, linear, d.mean() ** 2 - t**2 * v_d]))
    return float(low), float(high)


def test_interval_of_the_share_is_fiellers():
    draw = np.random.default_rng(0)
    difficulty = draw.normal(-1, 0.3, 50)
    g, d = draw.normal(0.3, 0.05, 6), draw.normal(0.02, 0.02, 6)
    before = difficulty + g[:, None]
    found = contrast(before, before + d[:, None], difficulty)
    assert share_interval(found) == pytest.approx(fieller(d, g), abs=1e-4)
    g, d = draw.normal(0.3, 0.5, 400), draw.normal(0.02, 0.3, 400)
    difficulty = draw.normal(-1, 0.3, 400)
    found = contrast((difficulty + g)[None], (difficulty + g + d)[None], difficulty)
    assert share_interval(found) == pytest.approx(fieller(d, g), abs=1e-4)


@pytest.mark.parametrize("outcome", ["log_probability", "brier", "nats_per_byte"])
def test_the_arms_are_equal_where_the_interval_is_within_the_margin(outcome):
    """For an outcome to lower the gain is a fall, for texts a rise, which is what was forgotten."""
    sign = -1 if outcome == "brier" else 1
    draw = np.random.default_rng(1)
    difficulty = draw.normal(5, 0.3, 200)
    before = difficulty + sign * 0.3 + draw.normal(0, 0.2, (4, 200)) + draw.normal(0, 0.01, (4, 1))
    after = before + 0.02 + draw.normal(0, 0.2, (4, 200))
    found = contrast(before, after, difficulty, outcome)
    low, high = share_interval(found)
    assert low < found.effects[MACRO].difference / 0.3 < high
    outer = max(-low, high)
    for share, equal in ((0.98 * outer, False), (1.02 * outer, True)):
        assert (p_unequal(found, Margin(share, of_gain=True)) <= LEVEL) == equal
    back = contrast(after, before, difficulty, outcome)
    assert p_unequal(back, Margin(0.2, of_gain=True)) != p_unequal(found, Margin(0.2, of_gain=True)), "of another gain"
    flat = contrast(difficulty + 0 * before, after, difficulty, outcome)
    assert p_unequal(replace(found, base={}), Margin(9, of_gain=True)) == 1, "the gain is not known"
    assert share_interval(flat) == (-np.inf, np.inf) and p_unequal(flat, Margin(0.9, of_gain=True)) > LEVEL


@pytest.fixture
def experiment(tmp_path):
    """Three arms of four seeds, and their base, some of whose answers are to other questions."""
    rows = [*drawn_arms(GAINS, seeds=4), base_row(base(sizes={**WIDE, "piqa": 7}))]
    return write_experiment(tmp_path / "study", rows, contrasts=[("lora", "same"), ("lora", "other")])


def arms_beside(untrained, *, gain):
    """Return two arms of one run with this gain, and the base's answers beside them."""
    found = []
    for name in ("lora", "same"):
        run = drawn(0, gain=gain, sizes=WIDE, arm=name)
        if untrained is not None:
            run = with_evaluation(run, base=untrained.evaluation)
        found.append(Arm(name, {0: run}))
    return found


def expected_gain(found, arm):
    runs = next(one for one in found.arms if one.name == arm).runs.values()
    gained = []
    for task, untrained in base(sizes=WIDE).tasks.items():
        tuned = [run.tasks[task] for run in runs]
        of_base = untrained.only(tuned[0].ids).outcomes["log_probability"]  # some were not asked
        gained.append(np.mean([one.outcomes["log_probability"] for one in tuned]) - np.mean(of_base))
    return float(np.mean(gained))


def test_gains_are_shown_and_a_margin_may_be_a_share_of_one(experiment):
    found = compare_paths([experiment]).within(Margin(0.2, of_gain=True))
    ((head, *rows),) = tables(found)
    assert head[4].startswith("gain over base") and any("% of the gain" in column for column in head)
    untrained = shared_base([run.evaluation for arm in found.arms for run in arm.runs.values()])
    assert untrained is not None and list(untrained.tasks) == list(WIDE)
    for row, arm in zip(rows, found.arms, strict=True):
        gain = gain_of(evaluations_of(arm.runs.values()), untrained, OUTCOMES["log_probability"])
        assert gain is not None and gain.difference == pytest.approx(expected_gain(found, row[0]))
        low, high = gain.interval
        assert row[4] == f"{gain.difference:+.4f} ({low:+.4f} to {high:+.4f})"
    said = "\n".join(lines(found))
    of_gain = f"20 % of lora's gain ({expected_gain(found, 'lora'):.4f} nats)"
    assert says(said, "2 contrasts", "20 % of the gain", "other predicts", "better than lora", "joint 95 %")
    assert says(said, f"Equal to lora within {of_gain}: same.")
    alone = compare_paths([experiment], contrasts=[("lora", "same")]).within(Margin(0.2, of_gain=True))
    assert says("\n".join(lines(alone)), f"same and lora are equal within {of_gain}", "90 %")


def test_margin_of_an_experiment_is_the_default(experiment):
    before = (experiment / EXPERIMENT).read_bytes()
    index = read_index(experiment)
    assert index is not None and "margin" not in json.loads(before)
    index.write(experiment)
    assert (experiment / EXPERIMENT).read_bytes() == before, "one without a margin is written as ever"
    for written, by_default, of_accuracy in (
        ("20%", Margin(0.2, of_gain=True), Margin(0.2, of_gain=True)),
        ("0.02", Margin(0.02), Margin(0.5)),  # which was of another outcome
    ):
        replace(index, margin=written).write(experiment)
        assert compare_paths([experiment]).margin == by_default
        assert compare_paths([experiment], outcome="accuracy").margin == of_accuracy


def test_share_of_the_gain_needs_the_bases_answers():
    """A base that was asked fewer questions, or in another way, does not count. A base itself has no gain."""
    others = (
        None,
        base(sizes={**WIDE, "obqa": 399}),
        asked_as(base(sizes=WIDE), format="other"),
        answered_as(base(sizes=WIDE), fingerprint="beef", adapter=None),
    )
    found = [compare_arms(arms_beside(untrained, gain=0.1)) for untrained in others]
    found.append(compare_arms([Arm("base", {None: base()}), Arm("tuned", {0: drawn(0, gain=0.2)})]))
    for one in found:
        assert one.main is not None and one.main.gains is None
        with pytest.raises(UsageError, match="--margin 20%"):
            one.within(Margin(0.2, of_gain=True))


def test_negative_gain_is_written_with_its_sign():
    """A share of a negative gain is no margin."""
    found = compare_arms(arms_beside(base(sizes=WIDE), gain=-0.1), outcome="log_probability")
    told = "\n".join(lines(found.within(Margin(2.0, of_gain=True))))
    assert found.main is not None and found.main.gains is not None
    gain = found.main.gains[0].difference
    assert gain < -0.05
    assert f"nor equality within 200 % of lora's gain ({gain:.4f} nats)" in told


def test_text_of_a_margin(experiment, capsys):
    cases = {"20%": Margin(0.2, True), " 5 % ": Margin(0.05, True), "0.01": Margin(0.01)}
    for text, margin in cases.items():
        assert read_margin(text) == margin and read_margin(str(margin)) == margin
    for text in ("", "%", "-1", "0%", "nan", "inf%", "20 percent"):
        code, _, error = run(capsys, "compare", experiment, f"--margin={text}")
        assert code == 2 and says(error, "--margin", "20%"), text
