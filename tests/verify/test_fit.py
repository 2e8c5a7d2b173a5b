"""The fit and the verdict on answers that are made by an equation, with rounding and faults of known size."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.checks.verdicts import of_questions
from moslora.verify.fit import centered, fit
from moslora.verify.verdict import Evidence, TextEvidence, judge, judge_texts, tolerance

OPTIONS = 4


def made(questions, *, seed=0, scale=1.0):
    """Log-probabilities of each question's options, normal."""
    random = np.random.default_rng(seed)
    return list(random.normal(0, scale, (questions, OPTIONS)))


def evidence(questions=64, *, k=1.0, noise=0.0, seed=0, others=False):
    """A server at k between base and run, with noise; rounding of 0.02 is explained."""
    base = made(questions, seed=1)
    moved = made(questions, seed=2)
    off = made(questions, seed=3 + seed, scale=noise)
    run = [plain + change for plain, change in zip(base, moved, strict=True)]
    server = [plain + k * change + error for plain, change, error in zip(base, moved, off, strict=True)]
    checkpoint = [plain + 0.6 * change for plain, change in zip(base, moved, strict=True)]
    named = {}
    if others:
        named = {"step-20": centered(checkpoint)}
    lengths = list(np.random.default_rng(4).integers(20, 200, questions))
    return Evidence(centered(server), centered(run), centered(base), named, lengths, 0.02, "float16")


def test_k_is_that_of_least_squares():
    given = evidence(k=0.7, noise=0.1)
    assert given.base is not None
    server, run, base = (np.concatenate(one) for one in (given.server, given.run, given.base))
    (expected,), (left,), *_ = np.linalg.lstsq((run - base)[:, None], server - base, rcond=None)
    found = fit(given.server, given.run, given.base)
    assert found.k == pytest.approx(expected) and found.interval[0] < 0.7 < found.interval[1]
    assert found.left == pytest.approx(np.sqrt(left / len(run)))
    shifted = centered([row + 5.0 for row in given.server])
    assert fit(shifted, given.run, given.base).k == pytest.approx(expected)


@pytest.mark.parametrize(
    ("k", "noise", "kind"),
    [
        (1.0, 0.01, "run"),
        (0.0, 0.01, "base"),
        (0.0, 0.2, "base"),
        (0.9, 0.01, "scale"),
        (1.1, 0.01, "scale"),
        (2.0, 0.01, "scale"),
        (0.5, 0.01, "scale"),
        (1.0, 0.2, "quantised"),
        (0.6, 0.35, "checkpoint"),
        (0.5, 2.0, "another model"),
    ],
)
def test_verdict_names_the_model(k, noise, kind):
    for seed in range(20):
        assert judge(evidence(k=k, noise=noise, seed=seed))[0].kind == kind


def test_the_true_model_is_never_called_another():
    """200 draws of the rounding, and 200 bootstrap samples of 64 questions."""
    for seed in range(200):
        assert judge(evidence(noise=0.012, seed=seed))[0].passed
    whole = evidence(noise=0.012)
    random = np.random.default_rng(0)
    for _ in range(200):
        assert judge(of_questions(whole, random.integers(0, 64, 64).tolist()))[0].passed


def rounded(*, k, effect, noise, seed):
    """A server at k, where rounding has moved the answers of run and base as much as its own."""
    base = made(64, seed=seed, scale=2.0)
    moved = made(64, seed=seed + 1_000, scale=effect)
    told = []
    for share, errors in ((k, seed + 2_000), (1.0, seed + 3_000), (0.0, seed + 4_000)):
        of_rounding = made(64, seed=errors, scale=noise)
        rows = zip(base, moved, of_rounding, strict=True)
        told.append(centered([plain + share * change + error for plain, change, error in rows]))
    lengths = list(np.random.default_rng(4).integers(20, 200, 64))
    return Evidence(*told, {}, lengths, 0.05, "bfloat16")


@pytest.mark.parametrize("effect", [0.05, 0.1, 0.2, 0.5])
@pytest.mark.parametrize("noise", [0.005, 0.015, 0.03])
def test_rounding_is_no_fault(effect, noise):
    """An adapter that moves the answers little: k is too small by the run's own rounding, and nothing is wrong."""
    for seed in range(30):
        assert judge(rounded(k=1.0, effect=effect, noise=noise, seed=seed))[0].kind in ("run", "undecided")
        assert judge(rounded(k=0.0, effect=effect, noise=noise, seed=seed))[0].kind in ("base", "undecided")


def test_a_share_of_an_adapter_is_not_called_its_base():
    """Where the whole adapter moves the answers no farther than rounding explains."""
    for seed in range(30):
        assert judge(rounded(k=0.9, effect=0.05, noise=0.002, seed=seed))[0].kind == "scale"


def test_base_with_moved_long_questions_is_the_base():
    given = evidence()
    assert given.base is not None
    run = []
    for plain, change, length in zip(given.base, made(64, seed=7), given.lengths, strict=True):
        run.append(plain + change * (length > 120))
    found, _ = judge(Evidence(given.base, centered(run), given.base, {}, given.lengths, 0.02, "float16"))
    assert found.kind == "base"


def test_evaluated_checkpoint_is_named_before_a_scale():
    found, _ = judge(evidence(k=0.6, noise=0.01, others=True))
    assert found.kind == "checkpoint" and "step-20" in found.says


def test_weak_adapter_is_not_judged():
    given = evidence(8, noise=0.01)
    assert given.base is not None
    small = [plain + 0.01 * (own - plain) for own, plain in zip(given.run, given.base, strict=True)]
    server = [row + error for row, error in zip(small, made(8, seed=9, scale=0.01), strict=True)]
    weak = Evidence(centered(server), centered(small), given.base, {}, given.lengths, 0.02, "float16")
    assert judge(weak)[0].kind == "undecided"


def test_cut_context_is_found():
    given = evidence(noise=0.01)
    cut = []
    for row, length, error in zip(given.server, given.lengths, made(64, seed=8), strict=True):
        cut.append(row + error * (length > 120))
    found, _ = judge(Evidence(centered(cut), given.run, given.base, {}, given.lengths, 0.02, "float16"))
    assert found.kind == "context"
    assert f"of up to {max(length for length in given.lengths if length <= 120)} tokens" in found.says


def test_tolerance_is_drift_or_rounding():
    assert tolerance(margins=[0.0], tokens=[4, 4], dtypes=["float32", "float16"]) == pytest.approx(2 * 0.012)
    assert tolerance(margins=[1.0, 1.0], tokens=[1], dtypes=["bfloat16", "float16"]) == pytest.approx(0.5**0.5)


@pytest.mark.parametrize(
    ("counts", "kind", "agrees"),
    [
        ((60, 59, 40, 39, 1), "undecided", True),
        ((60, 21, 40, 1, 39), "base", False),
        ((60, 30, 40, 15, 15), "another model", False),
        ((60, 60, 2, 2, 0), "undecided", False),
        ((60, 58), "undecided", True),
        ((60, 30), "not the run", False),
        ((7, 7, 7, 7, 0), "undecided", False),
        ((7, 0, 7, 0, 7), "undecided", False),
    ],
)
def test_texts_never_prove_the_run(counts, kind, agrees):
    found = judge_texts(TextEvidence(*counts))
    assert (found.kind, found.agrees) == (kind, agrees)


def test_without_the_base_nothing_is_the_run():
    """The same evidence: near the run it is undecided, and far from it not the run."""
    for noise, kind in ((0.0, "undecided"), (0.01, "undecided"), (0.2, "not the run")):
        found, fit = judge(replace(evidence(noise=noise), base=None))
        assert (found.kind, found.agrees, fit) == (kind, kind == "undecided", None)
