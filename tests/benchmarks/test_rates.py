"""Gain and forgetting by learning rate: of an experiment that was drawn at random, against its numbers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.research import rates, results
from benchmarks.svg import from_report
from compare_kit import base, base_row, drawn, row, with_texts, write_experiment
from moslora.compare.compared_run import ComparedRun
from moslora.report.canvas import Canvas

RATES = {"lora-low": 1e-3, "lora": 2e-3, "lora-high": 4e-3, "moelora-low": 4e-3, "moelora": 8e-3}
SEEDS = (0, 1, 2)
NATS_OF_BASE = 0.9
UNTRAINED = base(gain=-0.02)


def nats(arm: str, seed: int) -> float:
    """Of each byte: the higher the rate, the more is forgotten."""
    return 1 + 10 * RATES[arm] + 0.02 * (seed == 1)


def answers(arm: str, seed: int) -> ComparedRun:
    return with_texts(drawn(seed, gain=5 * RATES[arm], arm=arm), nats(arm, seed))


def log_p(run: ComparedRun) -> float:
    return float(np.mean([np.mean(run.tasks[task].outcomes["log_probability"]) for task in UNTRAINED.tasks]))


def found_in(folder: Path, losses: dict[tuple[str, int], tuple[float, float] | None]) -> results.ScoredExperiment:
    """An experiment of these arms and seeds, with their held-out loss at the end and its lowest."""
    rows = [base_row(with_texts(UNTRAINED, NATS_OF_BASE))]
    for (arm, seed), loss in losses.items():
        last, lowest = loss or (None, None)
        rows.append(row(arm, answers(arm, seed), rate=RATES[arm], validation_loss=last, lowest_loss=lowest))
    return results.load(write_experiment(folder, rows, contrasts=[("lora", "moelora")]))


@pytest.fixture
def found(tmp_path):
    return found_in(tmp_path, dict.fromkeys((arm, seed) for arm in RATES for seed in SEEDS))


def test_each_method_has_its_gains_and_losses_by_rate(found, tmp_path):
    methods = rates.by_method(found)
    assert {method: [one.rate for one in its] for method, its in methods.items()} == {
        "lora": [1e-3, 2e-3, 4e-3],
        "moelora": [4e-3, 8e-3],
    }
    for arm, one in zip(RATES, (one for its in methods.values() for one in its), strict=True):
        assert one.is_best == (arm in ("lora", "moelora"))
        assert one.forgotten == pytest.approx(np.array([nats(arm, seed) - NATS_OF_BASE for seed in SEEDS]), rel=1e-6)
        gained = [log_p(answers(arm, seed)) - log_p(UNTRAINED) for seed in SEEDS]
        assert one.gained == pytest.approx(np.array(gained), rel=1e-5)
    rows = rates.rates_table(methods).splitlines()[2:]
    assert [row.split(" | ")[1] for row in rows] == ["0.001", "**0.002**", "0.004", "0.004", "**0.008**"]
    best = methods["lora"][1].forgotten
    assert rows[1].endswith(f"| {best.mean():.4f} ± {best.std(ddof=1) / 3**0.5:.4f} |")
    models = {"one": methods, "another": {"lora": methods["lora"]}}
    svg = from_report(rates.figure(Canvas(tmp_path, list(methods)), models))
    assert ">lora<" in svg and ">moelora<" in svg and "lora-low" not in svg and ">another: gain" in svg
    with pytest.raises(SystemExit, match="moslora eval RUN --base"):
        rates.by_method(replace(found, base=None))


def test_differences_from_the_first_arm_stand_outcome_by_outcome(tmp_path):
    """Held-out loss against Student's t over the seeds; a second line leaves out the run that blew up."""
    last = {"lora": (3.0, 3.2, 2.9), "moelora": (3.1, 3.25, 3.6)}
    losses = {(arm, seed): (loss, loss) for arm, of_arm in last.items() for seed, loss in enumerate(of_arm)}
    found = found_in(tmp_path, losses | {("moelora", 2): (3.6, 3.35)})
    assert rates.blown_up(found, "moelora") == {2} and not rates.blown_up(found, "lora")
    title, _, every, without = [line.split(" | ") for line in rates.beside_table(found).splitlines()]
    assert every[:2] == ["| moelora", "0.008"] and without[1] == "0.008"
    for cells, seeds in ((every, 3), (without, 2)):
        differences = np.subtract(last["moelora"], last["lora"])[:seeds]
        half = stats.t.ppf(0.975, seeds - 1) * np.std(differences, ddof=1) / seeds**0.5
        mean = np.mean(differences)
        expected = f"{mean:+.4f} ({mean - half:.4f} to {mean + half:.4f})".replace("-", "−")
        assert cells[title.index("validation loss")] == expected
