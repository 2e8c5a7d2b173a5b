"""Gain and forgetting by learning rate: of an experiment that was drawn at random, against its numbers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.article import rates, results
from benchmarks.svg import from_report
from compare_kit import base, base_row, drawn, row, with_texts, write_experiment
from moslora.report.canvas import Canvas
from moslora.runs.evaluation import Evaluation

RATES = {"lora-low": 1e-3, "lora": 2e-3, "lora-high": 4e-3, "moelora-low": 4e-3, "moelora": 8e-3}
SEEDS = (0, 1, 2)
NATS_OF_BASE = 0.9
UNTRAINED = base(gain=-0.02)


def nats(arm: str, seed: int) -> float:
    """Of each byte: the higher the rate, the more is forgotten."""
    return 1 + 10 * RATES[arm] + 0.02 * (seed == 1)


def answers(arm: str, seed: int) -> Evaluation:
    return with_texts(drawn(seed, gain=5 * RATES[arm], arm=arm), nats(arm, seed))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [base_row(with_texts(UNTRAINED, NATS_OF_BASE))]
    for arm, rate in RATES.items():
        rows += [row(arm, answers(arm, seed), rate=rate) for seed in SEEDS]
    return write_experiment(tmp_path, rows, contrasts=[("lora", "moelora")])


def test_each_method_has_its_gains_and_losses_by_rate(folder: Path) -> None:
    methods = rates.by_method(results.load(folder))
    assert {method: [one.arm for one in its] for method, its in methods.items()} == {
        "lora": ["lora-low", "lora", "lora-high"],
        "moelora": ["moelora-low", "moelora"],
    }
    for its in methods.values():
        for one in its:
            assert one.rate == RATES[one.arm]
            forgotten = [nats(one.arm, seed) - NATS_OF_BASE for seed in SEEDS]
            assert one.forgotten == pytest.approx(np.array(forgotten), rel=1e-6)
            gained = []
            for seed in SEEDS:
                run = answers(one.arm, seed)
                by_task = []
                for task, of_base in UNTRAINED.tasks.items():
                    after = np.mean(run.tasks[task].outcomes["log_probability"])
                    by_task.append(after - np.mean(of_base.outcomes["log_probability"]))
                gained.append(np.mean(by_task))
            assert one.gained == pytest.approx(np.array(gained), rel=1e-5)


def test_the_table_and_the_figure_name_every_rate(folder: Path) -> None:
    methods = rates.by_method(results.load(folder))
    rows = rates.rates_table(methods).splitlines()[2:]
    assert [row.split(" | ")[:3] for row in rows] == [
        ["| lora", "0.001", "3"],
        ["| lora", "**0.002**", "3"],
        ["| lora", "0.004", "3"],
        ["| moelora", "0.004", "3"],
        ["| moelora", "**0.008**", "3"],
    ]
    best = methods["lora"][1]
    error = best.forgotten.std(ddof=1) / 3**0.5
    assert rows[1].endswith(f"| {best.forgotten.mean():.4f} ± {error:.4f} |")
    svg = from_report(rates.figure(Canvas(folder, list(methods)), methods))
    assert ">lora<" in svg and ">moelora<" in svg and "lora-low" not in svg


def test_without_the_base_there_is_no_gain(folder: Path) -> None:
    found = replace(results.load(folder), base=None)
    with pytest.raises(SystemExit, match="moslora eval RUN --base"):
        rates.by_method(found)


def test_runs_made_again_are_paired_by_method_rate_and_seed(folder: Path) -> None:
    """Here with themselves, but for one, whose texts cost 0.01 nats more."""
    found = results.load(folder)
    arms = []
    for arm in found.arms:
        changed = {}
        for seed, run in arm.runs.items():
            changed[seed] = run
            if (arm.name, seed) == ("lora-high", 1):
                changed[seed] = with_texts(run, nats(arm.name, seed) + 0.01)
        arms.append(replace(arm, runs=changed))
    rows = rates.reruns_table(replace(found, arms=arms), found).splitlines()[2:]
    assert len(rows) == len(RATES) * len(SEEDS)
    moved = [row for row in rows if not row.endswith("| +0.0000 |")]
    assert moved == ["| lora | 0.004 | 1 | +0.0000 | +0.0 | +0.0100 |"]


def test_differences_from_the_first_arm_stand_outcome_by_outcome(tmp_path: Path) -> None:
    """Held-out loss against Student's t over the seeds; a second line leaves out the run that blew up."""
    losses = {("lora", 0): 3.0, ("lora", 1): 3.2, ("lora", 2): 2.9}
    losses |= {("moelora", 0): 3.1, ("moelora", 1): 3.25, ("moelora", 2): 3.6}
    rows = [base_row(with_texts(UNTRAINED, NATS_OF_BASE))]
    for (arm, seed), loss in losses.items():
        lowest = loss - 0.25 * (loss == 3.6)
        rows.append(row(arm, answers(arm, seed), rate=RATES[arm], validation_loss=loss, lowest_loss=lowest))
    found = results.load(write_experiment(tmp_path, rows, contrasts=[("lora", "moelora")]))
    assert rates.blown_up(found, "moelora") == {2} and not rates.blown_up(found, "lora")
    title, _, every, without = [line.split(" | ") for line in rates.beside_table(found).splitlines()]
    assert every[:2] == ["| moelora", "0.008"] and without[1] == "0.008"
    place = title.index("validation loss")
    for cells, seeds in ((every, SEEDS), (without, SEEDS[:2])):
        differences = [losses["moelora", seed] - losses["lora", seed] for seed in seeds]
        mean, error = np.mean(differences), np.std(differences, ddof=1) / len(seeds) ** 0.5
        half = stats.t.ppf(0.975, len(seeds) - 1) * error
        expected = f"{mean:+.4f} ({mean - half:.4f} to {mean + half:.4f})".replace("-", "−")
        assert cells[place] == expected
