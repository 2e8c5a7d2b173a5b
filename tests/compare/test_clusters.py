"""Clusters of questions in comparisons: of runs with several seeds, and where only some evaluations know them."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from compare_kit import SIZES, drawn, with_tasks
from message_kit import says
from moslora.compare.arms import Arm, cluster_codes
from moslora.compare.comparison import compare_arms
from moslora.compare.contrast import Contrast
from moslora.runs.answers import TaskAnswers
from moslora.runs.evaluation import Evaluation


def copied(run: Evaluation, copies: int, *, grouped: bool = True) -> Evaluation:
    """The run with each question so many times."""
    tasks = {}
    for task, answers in run.tasks.items():
        ids: list[str] = []
        for copy in range(copies):
            ids += [f"{task}/test/{copy}-{id}" for id in answers.ids]
        outcomes = {name: column * copies for name, column in answers.outcomes.items()}
        found = TaskAnswers(tuple(ids), answers.gold * copies, outcomes)
        if grouped:
            found = replace(found, clusters=answers.ids * copies)
        tasks[task] = found
    return with_tasks(run, tasks)


def contrast(seeds: int, copies: int, outcome: str, *, grouped: bool = True) -> Contrast:
    arms = []
    for name, gain in (("one", 0.0), ("other", 0.1)):
        runs: dict[int | None, Evaluation] = {}
        for seed in range(seeds):
            runs[seed] = copied(drawn(seed, gain=gain, arm=name), copies, grouped=grouped)
        arms.append(Arm(name, runs))
    (found,) = compare_arms(arms, outcome=outcome).named
    return found


@pytest.mark.parametrize("outcome", ["accuracy", "log_probability"])
@pytest.mark.parametrize("seeds", [1, 4])
@pytest.mark.parametrize("copies", [2, 5])
def test_each_question_copied_tells_nothing_new(seeds: int, copies: int, outcome: str) -> None:
    """Intervals and p are those of the questions; without clusters the error of one run each is too small by √k."""
    once = contrast(seeds, 1, outcome)
    often = contrast(seeds, copies, outcome)
    for name, effect in once.effects.items():
        found = often.effects[name]
        for number in ("difference", "interval", "inner", "p"):
            assert getattr(found, number) == pytest.approx(getattr(effect, number), abs=1e-12), (name, number)
    if seeds == 1 and outcome == "log_probability":
        ignoring = contrast(seeds, copies, outcome, grouped=False)
        for task, size in SIZES.items():
            right = np.ptp(once.effects[task].interval) / stats.t.ppf(0.975, size - 1)
            wrong = np.ptp(ignoring.effects[task].interval) / stats.t.ppf(0.975, copies * size - 1)
            assert right / wrong == pytest.approx(np.sqrt((copies * size - 1) / (size - 1)), rel=1e-7)


def test_clusters_that_one_evaluation_knows_hold_for_all(capsys: pytest.CaptureFixture[str]) -> None:
    """As where a task has got its clusters after the first run was scored."""
    earlier = copied(drawn(0), 3, grouped=False)
    later = copied(drawn(1), 3)
    for runs in ((earlier, later), (later, earlier)):
        sizes = {task: np.bincount(codes).tolist() for task, codes in cluster_codes(runs).items()}
        assert sizes == {task: [3] * size for task, size in SIZES.items()}
    found = compare_arms([Arm("a", {0: earlier}), Arm("b", {0: later})])
    assert list(found.named[0].clusters) == list(SIZES)
    assert says(capsys.readouterr().out, "clusters", "boolq 180 in 60")
    assert not cluster_codes([earlier, earlier])
