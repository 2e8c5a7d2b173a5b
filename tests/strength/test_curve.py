"""The arithmetic of a curve, from numbers by hand: what is recommended, the shares, and their intervals."""

import numpy as np
import pytest

from moslora.runs.run import Run
from moslora.strength.curve import STRENGTHS, Curve, Measure, read_curve, write_curve

COUNT = 200


def measure(at, title="loss", *, count=COUNT, noise=0.01, weights=None):
    """``count`` rows whose mean at strength c is about ``at(c)``: a row is off by about as much at every strength, and
    by ``noise`` at each by itself."""
    draw = np.random.default_rng(1)
    own = draw.normal(0, 1, count)
    weights = np.ones(count) if weights is None else weights
    levels = np.array([at(c) for c in STRENGTHS])
    values = (levels[:, None] + own + draw.normal(0, noise, (len(STRENGTHS), count))) * weights
    return Measure(title, values, weights)


def curve(loss, *others):
    return Curve("hash", loss, others)


@pytest.mark.parametrize(("lowest", "recommended"), [(0.5, 0.5), (0.8, 0.7), (1.0, 0.9), (1.2, 1.0)])
def test_recommended_strength_keeps_most_of_the_fall_in_loss(lowest, recommended):
    """The loss is lowest at c. 97 % of its fall are reached at c − √(.03 c²), and where c is 1.2, at 1.2 − √.082."""
    found = curve(measure(lambda c: 2 + (c - lowest) ** 2))
    assert found.recommended == recommended
    low, high = found.chosen_by_samples
    assert low <= recommended <= high <= 1
    assert f"strength {recommended:g}: " in found.conclusion()


def test_the_loss_is_a_mean_over_label_tokens():
    """Two kinds of rows: the longer ones, which have nine of ten labels, are better off at 0.4, all others at 0.9."""
    weights = np.tile([1.0, 9.0], COUNT // 2)
    levels = np.array([[(c - 0.9) ** 2, (c - 0.4) ** 2] for c in STRENGTHS])
    values = np.tile(levels, COUNT // 2) * weights
    found = curve(Measure("loss", values, weights))
    assert found.recommended == 0.4
    expected = 0.1 * levels[:, 0] + 0.9 * levels[:, 1]
    np.testing.assert_allclose(found.loss.means, expected)


def test_no_recommendation_from_few_rows_or_if_the_base_is_best():
    for loss, why in ((measure(lambda c: 3 - c, count=29), "29 rows"), (measure(lambda c: 2 + c), "the base")):
        found = curve(loss)
        assert found.recommended is None and why in found.conclusion()
        assert len(found.table()) == 1 + len(STRENGTHS)
    assert curve(measure(lambda c: 3 - c, count=30)).recommended == 1


def test_samples_without_a_change_have_no_share():
    """Five of 40 answers become right, at strength 1: some samples have none of them."""
    values = np.zeros((len(STRENGTHS), 40))
    values[STRENGTHS.index(1.0), :5] = 1
    values[STRENGTHS.index(0.9), :5] = 1
    found = Measure("accuracy", values, np.ones(40))
    assert found.has_changed and (found.sampled_means[:, STRENGTHS.index(1.0)] == 0).any()
    with np.errstate(all="raise"):
        assert found.share(STRENGTHS.index(0.9)) == (1.0, (1.0, 1.0))


def test_shares_and_intervals_equal_a_plain_bootstrap():
    """Again, a sample at a time, with other draws: the ends agree within the sampling of a percentile."""
    found = measure(lambda c: -2 + c * (2 - c), "log p", noise=0.5)
    place = STRENGTHS.index(0.6)
    share, (low, high) = found.share(place)
    y = found.values
    assert share == pytest.approx((y[place].mean() - y[0].mean()) / (y[8].mean() - y[0].mean()))
    draw = np.random.default_rng(5)
    shares = []
    for _ in range(4000):
        rows = draw.integers(0, COUNT, COUNT)
        base, here, whole = (y[at, rows].mean() for at in (0, place, STRENGTHS.index(1.0)))
        shares.append((here - base) / (whole - base))
    assert (low, high) == pytest.approx(np.percentile(shares, [2.5, 97.5]), abs=0.01)


def test_shares_of_uncertain_changes_are_not_shown():
    noisy = Measure("accuracy", np.outer(STRENGTHS, [1, -1] * 50), np.ones(100))
    sure = measure(lambda c: c * c, "nats per byte")
    found = curve(measure(lambda c: 3 - c), noisy, sure)
    assert "accuracy" not in found.conclusion() and "100 % in nats per byte" in found.conclusion()
    (row,) = (row for row in found.table() if row[0] == "0.5")
    assert "%" not in row[2] and "25 %" in row[3]


def test_a_curve_is_read_only_for_its_own_weights(trained, tmp_path):
    run = Run(tmp_path)
    (tmp_path / "adapter").symlink_to(trained / "adapter")
    weights = Run(trained)
    from moslora.runs.adapter_folder import open_adapter

    hash = open_adapter(weights.result).manifest["sha256"]["adapter.safetensors"]
    assert read_curve(run) is None
    loss = measure(lambda c: 2 + (c - 0.7) ** 2, count=40)
    for of, found in ((hash, True), ("other", False)):
        write_curve(run, Curve(of, loss, (measure(lambda c: c, "log p"),)))
        again = read_curve(run)
        assert (again is not None) == found
        if again is not None:
            assert again.recommended == 0.6 and again.others[0].title == "log p"
            np.testing.assert_allclose(again.loss.values, loss.values, rtol=1e-5)
