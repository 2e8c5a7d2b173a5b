"""The table of scores: means, what their errors are of, and gains over the base."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from compare_kit import base, drawn
from experiment_kit import study
from message_kit import says
from moslora.compare.gains import gain_of
from moslora.compare.index import EXPERIMENT, read_index
from moslora.compare.statistics import effects
from moslora.experiment.tables import Curve, score_table
from moslora.recipe import find_recipe
from moslora.runs.outcomes import OUTCOMES as NAMED
from moslora.runs.scores import MACRO

OUTCOMES = ("log_probability", "accuracy")


def test_scores_have_their_errors_over_seeds_and_their_gains_with_intervals():
    runs = {arm: [drawn(seed, gain=gain) for seed in range(3)] for arm, gain in (("a", 0.1), ("b", 0.2))}
    untrained = base()
    curves = [Curve(arm, 1, {2e-3: []}) for arm in runs]
    plain = score_table(curves, runs, outcomes=OUTCOMES, seeds=4, strengths={})
    assert says(" ".join(plain[0]), "arm learning rate seeds", "log p", "over seeds", "accuracy, %", "over seeds")
    head, *rows = score_table(curves, runs, outcomes=OUTCOMES, seeds=4, strengths={}, base=untrained.evaluation)
    assert [head[3], head[5]] == plain[0][3:] and "gain over base" in head[4] == head[6]
    applied = score_table(curves, runs, outcomes=OUTCOMES, seeds=4, strengths={"b": [0.9, 0.7, 0.8]})
    assert [row[2] for row in applied] == ["strength", "", "0.7 to 0.9"]
    for row, plain_row, (arm, evaluations) in zip(rows, plain[1:], runs.items(), strict=True):
        assert row[:3] == [arm, "0.002", "3/4"] and [row[3], row[5]] == plain_row[3:]
        accuracies = []
        for evaluation in evaluations:
            of_tasks = [np.mean(answers.outcomes["accuracy"]) for answers in evaluation.tasks.values()]
            accuracies.append(100 * np.mean(of_tasks))
        assert row[5] == f"{np.mean(accuracies):.1f} ± {stats.sem(accuracies):.1f}"
        differences = {}
        for task, before in untrained.tasks.items():
            after = np.array([evaluation.tasks[task].outcomes["accuracy"] for evaluation in evaluations])
            differences[task] = after - before.outcomes["accuracy"]
        effect = effects(differences, binary=True)[MACRO]
        low, high = (100 * end for end in effect.interval)
        assert row[6] == f"{100 * effect.difference:+.2f} ({low:+.2f} to {high:+.2f})"
    assert rows[0][6] != rows[1][6]


def test_a_gain_is_of_the_same_questions_or_unknown():
    runs = [drawn(seed).evaluation for seed in range(2)]
    untrained = base().evaluation
    fewer = replace(runs[1], tasks={**runs[1].tasks, "obqa": runs[1].tasks["obqa"].at(range(9))})
    assert gain_of([runs[0], fewer], untrained, NAMED["accuracy"]) is None
    written = {task: replace(answers, outcomes={}) for task, answers in runs[1].tasks.items()}
    assert gain_of([runs[0], replace(runs[1], tasks=written)], untrained, NAMED["accuracy"]) is None
    assert gain_of(runs, untrained, NAMED["brier"]) is None and gain_of([], untrained, NAMED["accuracy"]) is None


@pytest.mark.parametrize("margin", ["20%", "0.005", None])
def test_index_has_a_margin_only_if_the_file_has(tmp_path, margin):
    text = find_recipe("article", kind="experiment").read_text(encoding="utf-8")
    file = tmp_path / "e.yaml"
    file.write_text(text + (f"\nmargin: {margin}\n" if margin else ""))
    out = tmp_path / "out"
    out.mkdir()
    study(str(file), out, fetching=False).write_index()
    assert json.loads((out / EXPERIMENT).read_text()).get("margin") == margin
    index = read_index(out)
    assert index is not None and index.margin == margin
