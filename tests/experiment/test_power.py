"""What an experiment would show, against closed forms, noncentral t, and studies drawn from a known world."""

from dataclasses import astuple

import numpy as np
import pytest
from scipy import stats

from cli_kit import run
from compare_kit import drawn_arms, write_experiment
from moslora.compare.comparison import compare_paths
from moslora.compare.statistics import LEVEL, POWER, effects
from moslora.experiment.power import Components, power_of
from moslora.runs.scores import MACRO
from recipe_kit import ROOT

ABLATION = ROOT / "docs" / "experiments" / "mixer-ablation"


def smallest(distribution, level=LEVEL):
    return distribution.detectable(level=level, power=POWER)


@pytest.mark.parametrize("seeds", [3, 4, 6, 20])
def test_power_over_seeds_is_that_of_a_t_test(seeds):
    of_seeds = Components(seed=0.7**2, question=0.0, both=0.0, questions=10, degrees=999.0)
    t = stats.t(seeds - 1)
    expected = (t.isf(LEVEL / 2) + t.isf(1 - POWER)) * 0.7 / seeds**0.5
    assert smallest(of_seeds.distribution(seeds=seeds, questions=40)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("seeds", "contrasts", "share"), [(3, 1, 77), (3, 11, 68), (6, 1, 79), (6, 11, 74)])
def test_how_often_a_few_seeds_show_it(seeds, contrasts, share):
    """The percentages of docs/experiments.md, by the noncentral t."""
    distribution = Components(seed=1.0, question=0.0, both=0.0, questions=10, degrees=9.0).distribution(
        seeds=seeds, questions=10
    )
    difference = smallest(distribution, LEVEL / contrasts) * seeds**0.5
    least = stats.t.isf(LEVEL / contrasts / 2, seeds - 1)
    assert round(100 * stats.nct.sf(least, seeds - 1, difference)) == share


def drawn(random, seeds, n, difference=0.0):
    """Return the differences of a study with the components 0.3² of seeds, 2² of questions and 3² of both."""
    return (
        difference
        + 0.3 * random.standard_normal((seeds, 1))
        + 2.0 * random.standard_normal(n)
        + 3.0 * random.standard_normal((seeds, n))
    )


KNOWN = Components(seed=0.3**2, question=2.0**2 / 200, both=3.0**2 / 200, questions=200, degrees=199)


def test_the_components_are_those_of_a_known_world():
    random = np.random.default_rng(5)
    found = []
    for _ in range(300):
        distribution = effects({"all": drawn(random, 5, 200)}, binary=False)[MACRO].distribution
        found.append(Components.of(distribution, questions=200))
    mean = Components(*np.mean([astuple(one) for one in found], axis=0))
    assert mean.seed == pytest.approx(KNOWN.seed, rel=0.12)
    assert mean.question == pytest.approx(KNOWN.question, rel=0.06)
    assert mean.both == pytest.approx(KNOWN.both, rel=0.02)


def test_four_of_five_studies_show_what_is_promised():
    """Studies with known components and other numbers of seeds and questions are drawn and compared."""
    random = np.random.default_rng(6)
    difference = smallest(KNOWN.distribution(seeds=8, questions=100))
    shown = [effects({"all": drawn(random, 8, 100, difference)}, binary=False)[MACRO].is_shown for _ in range(800)]
    assert np.mean(shown) == pytest.approx(POWER, abs=0.045)


def test_power_at_the_experiments_size_is_compares_detectable_difference():
    effect = effects({"all": drawn(np.random.default_rng(2), 6, 200)}, binary=False)[MACRO]
    components = Components.of(effect.distribution, questions=200)
    assert components.seed > 0 and components.question > 0
    assert smallest(components.distribution(seeds=6, questions=200)) == pytest.approx(effect.detectable, rel=1e-9)


def test_contrasts_share_the_level_also_without_runs(tmp_path):
    rows = drawn_arms({"a": 0.0, "b": 0.05}, seeds=4)
    write_experiment(tmp_path, rows, contrasts=[("a", "b"), ("a", "none")])
    (contrast,) = compare_paths([tmp_path]).named
    questions = contrast.questions() / len(contrast.y)
    distribution = Components.of(contrast.effects[MACRO].distribution, questions=questions).distribution(
        seeds=6, questions=questions
    )
    (of_six,) = [row for row in power_of(tmp_path)[0] if row[0] == "6"]
    assert of_six[3] == f"{smallest(distribution, LEVEL / 2):.4f}"


def test_power_needs_two_seeds(tmp_path, capsys):
    write_experiment(tmp_path, drawn_arms({"a": 0.0, "b": 0.05}, seeds=1), contrasts=[("a", "b")])
    for arguments, message in (((tmp_path,), "has two seeds"), ((ABLATION, "lora"), "only a folder")):
        code, said, errors = run(capsys, "experiment", *arguments, "--power")
        assert code == 2 and message in errors and errors.count("\n") == 1, (arguments, said)


def test_power_over_questions_is_that_of_a_normal_test():
    of_questions = Components(seed=0.0, question=0.36, both=0.0, questions=100, degrees=1e7)
    z = stats.norm.isf
    expected = 0.3 * (z(LEVEL / 2) + z(1 - POWER))
    assert smallest(of_questions.distribution(seeds=4, questions=400)) == pytest.approx(expected, rel=1e-5)
