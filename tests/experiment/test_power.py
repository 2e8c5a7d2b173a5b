"""What an experiment would find, against closed forms, noncentral t, and studies drawn from a known world."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import brentq

from cli_kit import run
from moslora.compare.statistics import LEVEL, MACRO, effects
from moslora.experiment.pilot import Pilot
from moslora.experiment.power import MOST_SEEDS, Components, Design, mean_of, seeds_for_margin
from moslora.runs.run import Run
from recipe_kit import ROOT

ABLATION = ROOT / "docs" / "experiments" / "mixer-ablation"


def of_seeds(seeds: int, deviation: float) -> Design:
    """A design whose variance is of the seeds alone."""
    return Design(seeds, seed=deviation**2 / seeds, question=0.0, both=0.0, degrees=999.0)


@pytest.mark.parametrize("seeds", [2, 3, 4, 8, 20])
@pytest.mark.parametrize("level", [0.05, 0.05 / 11])
def test_where_seeds_are_all_it_is_the_power_of_a_t_test(seeds: int, level: float) -> None:
    found = of_seeds(seeds, 0.7).smallest_difference(level)
    distance = stats.t.ppf(1 - level / 2, seeds - 1)

    def power(difference: float) -> float:
        return float(stats.nct.sf(distance, seeds - 1, difference * seeds**0.5 / 0.7))

    assert found == pytest.approx(brentq(lambda x: power(x) - 0.8, 0.01, 500), rel=3e-3)


def test_where_questions_are_all_it_is_that_of_a_normal_test() -> None:
    design = Design(4, seed=0.0, question=0.09, both=0.0, degrees=1e7)
    z = stats.norm.ppf
    assert design.smallest_difference(LEVEL) == pytest.approx(0.3 * (z(0.975) + z(0.8)), rel=1e-3)
    assert design.smallest_margin(LEVEL) == pytest.approx(0.3 * (z(0.95) + z(0.9)), rel=1e-3)


def drawn(random: np.random.Generator, shape: tuple[int, int], difference: float = 0.0) -> np.ndarray:
    """Differences of one study, of known components: 0.3² of seeds, 2² of questions, 3² of both."""
    seeds, n = shape
    return (
        difference
        + 0.3 * random.standard_normal((seeds, 1))
        + 2.0 * random.standard_normal(n)
        + 3.0 * random.standard_normal((seeds, n))
    )


KNOWN = Components(seed=0.3**2, question=2.0**2 / 200, both=3.0**2 / 200, questions=200, degrees=199)


def test_the_components_are_those_of_a_known_world() -> None:
    random = np.random.default_rng(5)
    found = []
    for _ in range(300):
        law = effects({"all": drawn(random, (5, 200))}, binary=False)[MACRO].law
        found.append(Components.of(law, questions=200))
    mean = mean_of(found)
    assert mean.seed == pytest.approx(KNOWN.seed, rel=0.12)
    assert mean.question == pytest.approx(KNOWN.question, rel=0.06)
    assert mean.both == pytest.approx(KNOWN.both, rel=0.02)


def test_four_of_five_studies_find_what_is_promised() -> None:
    """In a known world, by the law that `moslora compare` uses."""
    random = np.random.default_rng(6)
    design = KNOWN.design(4, 100)
    difference = design.smallest_difference(LEVEL)
    margin = design.smallest_margin(LEVEL)
    differing = [effects({"all": drawn(random, (4, 100), difference)}, binary=False)[MACRO].shown for _ in range(800)]
    alike = [effects({"all": drawn(random, (4, 100))}, binary=False)[MACRO].law for _ in range(800)]
    equal = [law.beyond(margin) <= LEVEL for law in alike]
    assert np.mean(differing) == pytest.approx(0.8, abs=0.045)
    assert np.mean(equal) == pytest.approx(0.8, abs=0.045)


def test_the_smallest_number_of_seeds() -> None:
    for margin in (0.9, 0.6, 0.4):
        seeds = seeds_for_margin(KNOWN, margin=margin, questions=400, level=LEVEL)
        assert KNOWN.design(seeds, 400).smallest_margin(LEVEL) <= margin
        assert KNOWN.design(seeds - 1, 400).smallest_margin(LEVEL) > margin or seeds == 2
    of_questions = 0.1 * KNOWN.design(MOST_SEEDS, 400).smallest_margin(LEVEL)
    assert seeds_for_margin(KNOWN, margin=of_questions, questions=400, level=LEVEL) is None


def test_the_command_says_what_a_file_would_find(capsys: pytest.CaptureFixture[str]) -> None:
    """From the packed runs of the repository, which have not recorded how long they took."""
    code, said, errors = run(capsys, "experiment", "mixer-ablation", "--power", "--pilot", ABLATION)
    assert code == 0, errors
    lines = said.splitlines()
    pilot = Pilot(ABLATION)
    spread = pilot.spread("log_probability")
    design = spread.components.design(6, 384)
    row = next(line for line in lines if line.startswith("6 "))
    found = f"{design.smallest_difference(LEVEL):.4f} / ±{design.smallest_margin(LEVEL):.4f}"
    assert found in row and row.endswith("–") and pilot.cost() is None
    seeds = seeds_for_margin(spread.components, margin=0.01, questions=384, level=LEVEL)
    assert lines[-1] == f"equality within ±0.01 nats takes {seeds} seeds: {4 * seeds} runs"
    assert "no run there says how long it took" in said
    assert "search for the learning rates takes up to 16 runs more" in said
    code, _, errors = run(capsys, "experiment", "mixer-ablation", "--power", "--pilot", "nowhere")
    assert code == 2 and errors.count("\n") == 1 and "nowhere" in errors and "--pilot" in errors


def test_what_no_power_is_known_of_is_refused_before_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """One arm, an outcome that the pilot does not have, and options of the power of an experiment that would run."""
    article = "article-second"
    cases = {
        (article, "lora", "--power", "--pilot", str(ABLATION)): "none of the comparisons",
        (article, "--power", "--pilot", str(ABLATION)): "no pilot for nats_per_byte",
        (article, "--margin", "0.02"): "--margin 0.02: is for --power",
        (article, "--pilot", str(ABLATION)): "is for --power",
    }
    for arguments, message in cases.items():
        code, said, errors = run(capsys, "experiment", *arguments)
        assert code == 2 and not said and message in errors and errors.count("\n") == 1, arguments


def test_a_runs_scoring_is_timed_by_the_question(finished: Path) -> None:
    cost = Pilot(finished).cost()
    scorings = [Run(path).facts["experiment"]["scoring"] for path in sorted((finished / "runs").iterdir())]
    assert all(scoring["questions"] == 18 and scoring["seconds"] > 0 for scoring in scorings)
    assert cost.question == pytest.approx(np.median([scoring["seconds"] / 18 for scoring in scorings]))
    assert cost.hours(10, questions=18) == pytest.approx(10 * (cost.training + 18 * cost.question) / 3600)
