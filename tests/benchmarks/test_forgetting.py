"""The planned tests of the experiment `forgetting`, on answers drawn at random with known truths."""

import numpy as np
import pytest
from scipy import stats

from benchmarks.research import forgetting, forgetting_page
from benchmarks.research.results import load
from compare_kit import base, base_row, drawn, row, with_tasks, with_texts, write_experiment
from moslora.compare.contrast import Contrast
from moslora.runs.evaluation import Evaluation
from moslora.runs.outcomes import OUTCOMES
from moslora.runs.scores import MACRO

SEEDS = 8
QUESTIONS = 60


def contrast(draw, *, kept, gain=1.0, noise=0.3):
    """Arms of which the second keeps so much of the first one's gain, over seeds and questions that vary."""
    y = {}
    bases = {}
    of_seeds = draw.normal(0, 0.05, (2, SEEDS, 1))
    for task in ("boolq", "piqa", "siqa"):
        bases[task] = draw.normal(-2, 1, QUESTIONS)
        of_questions = draw.normal(0, noise, (2, 1, QUESTIONS))
        both = draw.normal(0, noise, (2, SEEDS, QUESTIONS))
        before, after = of_seeds + of_questions + both + bases[task]
        y[task] = (before + gain, after + kept * gain)
    return Contrast("lora", "other", OUTCOMES["log_probability"], SEEDS, y, {}, {}, bases)


def test_a_part_is_students_test_where_seeds_are_all_that_varies():
    """Of the numbers that must be above 0, one for each seed."""
    draw = np.random.default_rng(0)
    lora, other = 1 + draw.normal(0, 0.1, (2, SEEDS, 1)) + np.zeros((2, SEEDS, QUESTIONS))
    found = Contrast("lora", "other", OUTCOMES["log_probability"], SEEDS, {"boolq": (lora, other)}, {}, {})
    zeros = np.zeros(QUESTIONS)
    found = Contrast("lora", "other", found.outcome, SEEDS, found.y, {}, {}, {"boolq": zeros})
    numbers = (other - 0.85 * lora)[:, 0]
    part = forgetting.keeps(found)
    assert part.p == pytest.approx(stats.ttest_1samp(numbers, 0, alternative="greater").pvalue, rel=1e-6)
    assert part.found == pytest.approx(other.mean() / lora.mean())
    less = forgetting.loses_less(found)
    assert less.p == pytest.approx(stats.ttest_rel(lora[:, 0], other[:, 0], alternative="greater").pvalue, rel=1e-6)
    assert less.found == pytest.approx((lora - other).mean())


@pytest.mark.parametrize(("kept", "low", "high"), [(0.85, 0.0, 0.09), (0.7, 0.0, 0.01), (1.0, 0.8, 1.0)])
def test_what_keeps_just_the_share_is_seldom_called_more_and_what_keeps_all_often(kept, low, high):
    """By 200 studies that are drawn; at the share itself 5 % are wrong, up to chance."""
    draw = np.random.default_rng(1)
    shown = [forgetting.keeps(contrast(draw, kept=kept)).p <= 0.05 for _ in range(200)]
    assert low <= np.mean(shown) <= high


def test_the_gain_counts_as_estimated():
    """A base that is not known well makes the share less certain than one that is taken for granted."""
    found = contrast(np.random.default_rng(2), kept=0.95)
    of_lora, _ = found.gains
    as_known = found.effects[MACRO].distribution.below(-0.15 * of_lora.difference)
    assert forgetting.keeps(found).p != pytest.approx(as_known, rel=0.01)


def study(folder, kept, forgotten, lost_in=""):
    """An experiment: arm -> the share of the gain that it keeps, and nats per byte.

    In the set `lost_in`, `recommended` gains nothing.
    """

    def of(seed: int, gain: float, bytes: float, arm: str) -> Evaluation:
        run = with_texts(drawn(seed, gain=gain, arm=arm), bytes)
        tasks = {}
        for name, answers in run.tasks.items():
            if arm == "recommended" and name == lost_in:
                answers = drawn(seed, arm=arm).tasks[name]
            outcomes = dict(answers.outcomes)
            if "log_probability" in outcomes:
                outcomes["log_probability_summed"] = tuple(3 * value for value in outcomes["log_probability"])
            tasks[name] = type(answers)(answers.ids, answers.gold, outcomes, clusters=answers.clusters)
        return with_tasks(run, tasks)

    untrained = of(99, 0.0, 0.9, "base")
    plain = base()
    rows = [base_row(with_tasks(plain, untrained.tasks))]
    for arm, share in kept.items():
        for seed in range(SEEDS):
            rows.append(
                row(arm, of(seed, 0.3 * share, forgotten[arm] + 0.001 * seed, arm), rate=0.002, validation_loss=3.0)
            )
    challengers = ("recommended", "lora-0.8", "replay")
    contrasts = [(one, other) for one in ("lora", "lora-half") for other in challengers]
    return write_experiment(folder, rows, contrasts=[*contrasts, ("lora", "lora-twice")])


def test_a_challenger_needs_all_parts_and_missing_ones_count(tmp_path, capsys):
    """One keeps the gain and forgets less, one forgets as much, and one has no runs: it counts in Holm's adjustment."""
    kept = {"lora": 1.0, "lora-half": 0.9, "lora-twice": 1.0, "recommended": 1.0, "replay": 1.0}
    forgotten = {"lora": 0.93, "lora-half": 0.92, "lora-twice": 0.95, "recommended": 0.905, "replay": 0.925}
    folder = study(tmp_path / "drawn", kept, forgotten)
    forgetting.main(folder)
    said = capsys.readouterr().out
    lines = {line.split()[0]: line for line in said.splitlines() if line.strip()}
    assert "better" in lines["recommended"] and "not shown" in lines["replay"] and "–" in lines["lora-0.8"]
    assert "told apart" in said and "NOT told apart" not in said
    forgetting.main(folder, without_seed=0)
    (replay,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("replay")]
    assert replay.split()[1] == "7"


def test_the_table_of_knobs_has_shares_of_what_lora_gains_and_loses(tmp_path):
    """Counted by hand from the answers: the mean over sets of the mean over questions, minus the base's."""
    kept = {"lora": 1.0, "lora-half": 0.5, "lora-twice": 2.0}
    found = load(study(tmp_path / "forgetting", kept, {"lora": 0.95, "lora-half": 0.925, "lora-twice": 1.0}))
    sets = [task for task in found.base.tasks if task != "passages"]

    def gained(run):
        of_sets = [np.mean(run.tasks[task].outcomes["log_probability"]) for task in sets]
        return np.mean(of_sets)

    by_hand = {}
    for arm in found.arms:
        by_hand[arm.name] = np.mean([gained(run.evaluation) - gained(found.base) for run in arm.runs.values()])
    knobs = forgetting_page.knobs_table(found, found.arms)
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in knobs.splitlines()}
    for arm in kept:
        share = by_hand[arm] / by_hand["lora"]
        assert f"| {by_hand[arm]:.4f} ± " in lines[arm]
        assert f"({100 * share:.0f} %)" in lines[arm]
    lost = forgetting_page.changes(found, forgetting_page.FORGOTTEN)
    assert lost["lora"].mean() == pytest.approx(0.95 + 0.0035 - 0.9)


def test_a_set_that_is_left_out_does_not_count(tmp_path, capsys):
    """Not even where it is the only one in which a challenger keeps nothing."""
    kept = {"lora": 1.0, "lora-half": 0.9, "lora-twice": 1.0, "recommended": 1.0}
    folder = study(tmp_path / "drawn", kept, dict.fromkeys(kept, 0.92) | {"recommended": 0.9}, lost_in="siqa")
    printed = {}
    for without in ("", "boolq", "siqa"):
        forgetting.main(folder, without_set=without)
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("recommended")]
        printed[without] = int(line.split()[2])
    assert printed["boolq"] < printed[""] < 90 < printed["siqa"]
