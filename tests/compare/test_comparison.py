"""Comparisons whole: an experiment's tables alone, those that are printed, and what is concluded."""

from dataclasses import replace

import numpy as np
import pytest

from compare_kit import CONDITIONS, SIZES, WIDE, base, drawn, drawn_arms, with_tasks, write_experiment
from message_kit import in_order, says
from moslora.compare.arms import Arm, cluster_codes
from moslora.compare.compared_run import ComparedRun
from moslora.compare.comparison import compare_arms, compare_paths, compare_planned
from moslora.compare.conclusion import lines
from moslora.compare.display import probability, tables
from moslora.compare.index import ExperimentIndex, read_index
from moslora.compare.margin import Margin
from moslora.compare.tables import read_tables, write_tables
from moslora.errors import UsageError
from moslora.runs.answers import TaskAnswers
from moslora.runs.scores import MACRO

GAINS = {"lora": 0.0, "init-only": 0.0, "learned": 0.08}


@pytest.fixture
def experiment(tmp_path):
    """Three arms of six seeds, of which only ``learned`` gains."""
    rows = drawn_arms(GAINS, seeds=6)
    return write_experiment(tmp_path / "ablation", rows, contrasts=[("init-only", "learned")])


def arms(**runs):
    """Return arms of a single run, or of a run for each seed."""
    made = []
    for name, of_arm in runs.items():
        if isinstance(of_arm, ComparedRun):
            of_arm = {of_arm.seed: of_arm}
        made.append(Arm(name, {**of_arm}))
    return made


def seeds(count, **changes):
    return {seed: drawn(seed, sizes=WIDE, **changes) for seed in range(count)}


def with_texts(answers, *, more):
    """Return the run with texts as well, at ``more`` nats per byte, with noise by the seed."""
    hard = np.random.default_rng(0).uniform(0.6, 1.2, 300)
    draw = np.random.default_rng(answers.seed or 0)
    rates = hard + more + 0.01 * draw.standard_normal(300)
    texts = TaskAnswers(tuple(f"mine/{n:04}" for n in range(300)), (), {"nats_per_byte": tuple(rates.tolist())})
    return with_tasks(answers, {**answers.tasks, "mine": texts})


def accuracies(run):
    """Return the accuracy of each task, by its definition."""
    return np.array([np.mean(answers.outcomes["accuracy"]) for answers in run.tasks.values()])


def test_texts_and_questions_are_compared_apart(capsys):
    one = drawn(1, sizes=WIDE)
    other = drawn(2, sizes=WIDE)
    before, after = with_texts(one, more=0), with_texts(other, more=0.02)
    found = compare_arms(arms(a=before, b=after))
    assert tables(found) == tables(compare_arms(arms(a=one, b=other))), "texts are no questions"
    printed = capsys.readouterr()
    assert says(printed.out + printed.err, "texts are left out: mine", "--outcome nats_per_byte")
    found = compare_arms(arms(a=before, b=after), outcome="nats_per_byte")
    assert found.main is not None and list(found.main.y) == ["mine"] and not found.main.majority
    assert found.main.effects["mine"].difference == pytest.approx(0.02, abs=0.003)
    assert says(said(found), "b predicts 300 texts 0.02", "WORSE than a", "95 %: 0.01")
    back = compare_arms(arms(b=after, a=before), outcome="nats_per_byte")
    assert says(said(back), "a predicts 300 texts 0.02", "better than b")
    same = compare_arms(arms(a=before, b=with_texts(other, more=0)), outcome="nats_per_byte")
    assert says(said(same), "equal within 0.005 nats per byte")
    texts = [with_tasks(run, {"mine": run.tasks["mine"]}) for run in (before, after)]
    assert compare_arms(arms(a=texts[0], b=texts[1])).outcome.name == "nats_per_byte"
    for with_some, named in ((one, "nats_per_byte: must be one of"), (before, "no question in common")):
        with pytest.raises(UsageError, match=named):
            compare_arms(arms(a=with_some, b=other), outcome="nats_per_byte")


def said(comparison):
    return lines(comparison)[-1]


def test_an_experiment_is_compared_from_its_tables(experiment):
    found = compare_paths([experiment])
    assert found.main is not None and found.outcome.name == "log_probability" and found.main.seeds == 6
    mean = {}
    for name, arm in zip(GAINS, found.arms, strict=True):
        of_tasks = []
        for one in arm.runs.values():
            of_tasks += [np.mean(answers.outcomes["log_probability"]) for answers in one.tasks.values()]
        mean[name] = np.mean(of_tasks)
    assert found.main.effects[MACRO].difference == pytest.approx(mean["learned"] - mean["init-only"])
    assert found.main.means[MACRO] == pytest.approx((mean["init-only"], mean["learned"]))
    every, contrast = tables(found)
    assert [row[0] for row in every[1:]] == [*GAINS]
    assert [row[0] for row in contrast[1:]] == [*WIDE, "macro average", "micro average"]
    effect = found.main.effects[MACRO]
    assert says(said(found), "learned predicts", "768 questions in 3 tasks", "better than init-only", "6 seeds")
    assert says(said(found), f"{effect.difference:.4f} nats", f"{effect.interval[0]:.4f} to {effect.interval[1]:.4f}")
    null = compare_paths([experiment], contrasts=[("lora", "init-only")], outcome="accuracy")
    low, high = (100 * end for end in null.main.effects[MACRO].interval)
    missed = 100 * null.main.effects[MACRO].detectable
    parts = (
        "No difference between init-only and lora",
        "768 questions",
        f"{-low:.1f} points worse",
        f"{high:.1f} better",
    )
    assert says(said(null), *parts, f"{missed:.1f} would have been found") and "equal" not in said(null)
    assert "nor equality within 0.1 points" in said(null.within(Margin(0.1)))
    with pytest.raises(UsageError, match=in_order("lorra", "lora", "init-only", "learned")):
        compare_paths([experiment], contrasts=[("lorra", "learned")])


def test_several_contrasts_are_one_family(experiment):
    """The third named contrast has an arm without runs, and counts."""
    named(experiment, ("lora", "init-only"), ("lora", "learned"), ("lora", "none"))
    found = compare_paths([experiment])
    assert found.main is None and found.count == 3 and not found.exploratory
    ((_, lora, *rest),) = tables(found)
    assert lora[:2] == ["lora", "6"] and not any(lora[4:])
    for row, one, times in zip(rest, found.named, (2, 3), strict=True):  # Holm's; p of learned is the smallest
        effect = one.effects[MACRO]
        low, high = effect.distribution.interval(0.05 / 3)
        assert row[0] == one.after and row[4:6] == [f"{effect.difference:+.4f}", f"{low:+.4f} to {high:+.4f}"]
        assert row[2] == f"{one.means[MACRO][1]:.3f}" and row[6] == probability(min(1, times * effect.p))
        low, high = effect.equivalence_interval
        assert row[7] == f"{low:+.4f} to {high:+.4f}"
    said = lines(found)
    assert says(said[0], "3 contrasts", "2 with runs")
    low, high = (abs(end) for end in found.named[1].effects[MACRO].distribution.interval(0.05 / 3))
    assert says(said[-2], "learned predicts", "better than lora", f"joint 95 %: {low:.4f} to {high:.4f}")
    assert said[-1] == "Equal to lora within 0.01 nats: init-only."
    assert "Equal to" not in "".join(lines(found.within(Margin(0.001))))


def test_first_arms_row_is_of_the_contrast_with_most_pairs(experiment):
    write_tables(experiment, [one for one in read_tables(experiment) if one.arm != "learned" or one.seed == 2])
    named(experiment, ("init-only", "learned"), ("init-only", "lora"))
    found = compare_paths([experiment])
    ((_, common, learned, lora),) = tables(found)
    assert (common[:2], lora[:2]) == (["init-only", "6"], ["lora", "6"]), "the most pairs"
    means = [f"{one.means[MACRO][0]:.3f}" for one in found.named]
    assert common[2] == means[1] != means[0]
    assert learned[:2] == ["learned", "1"] and learned[5:] == ["", "1.000", "", "1.000"]
    assert says(" ".join(lines(found)), "No difference from init-only is shown: ", "learned (one seed)")


def test_contrast_without_shared_seeds_counts_in_the_family():
    """The other contrasts of the family are judged, with this one in their number."""
    lora, same, far = seeds(3), seeds(3, rank=4), seeds(3, gain=0.1, rank=2)
    del lora[0], same[1], same[2]
    index = ExperimentIndex("e", ("lora", "same"), "log_probability", (), others=(("lora", "far"),))
    found = compare_planned(arms(lora=lora, same=same, far=far), index, outcome="log_probability")
    assert found.count == 2 and [contrast.after for contrast in found.named] == ["far"]
    p = found.named[0].effects[MACRO].p
    assert tables(found)[0][-1][6] == probability(2 * p), "by Holm, over both"
    del far[1], far[2]
    with pytest.raises(UsageError, match="too few seeds in common"):
        compare_planned(arms(lora=lora, same=same, far=far), index, outcome="log_probability")


def test_unpaired_runs_are_named():
    """A run may have a partner in another contrast. Independent seeds leave no run unpaired."""
    lora, other, third = seeds(3), seeds(3, gain=0.1, rank=2), seeds(3, rank=4)
    del lora[1], other[2]
    found = compare_arms(arms(lora=lora, other=other), contrasts=[("lora", "other")])
    assert found.main.seeds == 1
    assert says(lines(found)[0], "lora and other", "lora with seed 2, other with seed 1")
    several = lines(compare_arms(arms(other=other, lora=lora, third=third)))
    assert any(says(line, "other and third", "third with seed 2") for line in several)
    own = compare_arms(arms(lora=lora, other=other), allowed=["seeds"])
    assert not own.left_out


def test_contrasts_of_the_caller_replace_planned_ones(experiment):
    named(experiment, ("init-only", "learned"), ("init-only", "lora"))
    lost = compare_paths([experiment], contrasts=[("learned", "lora"), ("learned", "init-only")], outcome="accuracy")
    for arm, line in zip(("lora", "init-only"), lines(lost)[-2:], strict=True):
        assert says(line, f"{arm} answers", "points FEWER", "right than learned", "joint 95 %")
    assert "2 contrasts" in lines(lost)[0]


def test_one_run_against_its_base_says_nothing_of_methods():
    found = compare_arms(arms(base=base(sizes=WIDE), tuned=drawn(0, sizes=WIDE, gain=0.15)))
    (table,) = tables(found)
    assert table[0][:6] == ["task", "n", "majority", "base", "tuned", "difference"]
    untrained = 100 * accuracies(found.arms[0].runs[None])
    tuned = 100 * accuracies(found.arms[1].runs[0])
    difference = (tuned - untrained).mean()
    assert table[4][3:6] == [f"{untrained.mean():.1f}", f"{tuned.mean():.1f}", f"{difference:+.2f}"]
    (told,) = lines(found)
    low, high = (100 * end for end in found.main.effects[MACRO].interval)
    assert says(told, f"tuned answers {difference:.1f} points more of 1,200 questions", "than base")
    assert told.endswith(f"(95 %: {low:.1f} to {high:.1f}, p <.001)."), "nothing of methods"


def test_warnings_on_two_runs_and_few_questions():
    """Two runs say nothing of methods, and few questions may decide. Logs of other programs have no such warning."""
    two = compare_arms(arms(a=drawn(0, sizes=WIDE), b=drawn(0, sizes=WIDE, gain=0.15, rank=4)))
    assert says(said(two), "b answers", "These are two runs", "several seeds") and "Fragile" not in said(two)
    handful = compare_arms(arms(base=of_base(few(9, n=18)), tuned=few(15, n=18)))
    assert 0.01 < handful.main.effects[MACRO].p < 0.05
    assert says(said(handful), "tuned answers 33.3 points more of 18 questions", "Fragile", "18 independent questions")
    for alike in (few(0, n=18), few(9, n=18)):  # sure, and not shown
        other = few(18, n=18) if alike.tasks["obqa"].outcomes["accuracy"][0] == 0 else few(10, n=18)
        assert "Fragile" not in said(compare_arms(arms(base=of_base(alike), tuned=other)))


def of_base(run):
    """Return the run as an untrained model."""
    return replace(run, training_facts={}, seed=None)


def accuracy_by_id(answers):
    return dict(zip(answers.ids, answers.outcomes["accuracy"], strict=True))


def test_shared_questions_are_compared_and_others_named():
    untrained = base(sizes={"boolq": 30, "obqa": 50, "siqa": 20})
    tuned = drawn(0, sizes={"obqa": 40, "siqa": 60, "piqa": 9})
    found = compare_arms(arms(base=untrained, tuned=tuned))
    means = []
    for task, count in (("obqa", 40), ("siqa", 20)):
        before, after = (accuracy_by_id(run.tasks[task]) for run in (untrained, tuned))
        both = before.keys() & after.keys()
        assert len(both) == count
        means.append([np.mean([answers[id] for id in both]) for answers in (before, after)])
    assert found.main is not None and list(found.main.y) == ["obqa", "siqa"]
    expected = np.mean(means, axis=0)
    assert found.main.means[MACRO] == pytest.approx(tuple(expected))
    assert found.main.effects[MACRO].difference == pytest.approx(expected[1] - expected[0])
    assert says(lines(found)[0], "60 questions", "left out: boolq, 10 of obqa, 40 of siqa, piqa")
    chosen = compare_arms(arms(base=untrained, tuned=tuned), tasks="siqa")
    assert [row[0] for row in tables(chosen)[0]] == ["task", "siqa"], "one task is its own average"
    assert "left out: 40 of siqa" in lines(chosen)[0]
    assert compare_arms(arms(base=untrained, tuned=tuned), tasks="commonsense").arms == found.arms
    other = drawn(0, sizes={"piqa": 9})
    for against, tasks, *fault in (
        (tuned, "siga", "unknown task 'siga'", "did you mean siqa"),
        (other, None, "run-99", "run-0", "no question in common"),
    ):
        with pytest.raises(UsageError, match=in_order(*fault)):
            compare_arms(arms(base=untrained, tuned=against), tasks=tasks)


def few(right, n=6):
    """Return a run that answers ``right`` of n questions right. Half of the labels are 0."""
    ids = tuple(f"obqa/test/{row}" for row in range(n))
    outcomes = {"accuracy": tuple(float(row < right) for row in range(n))}
    return with_tasks(drawn(0), {"obqa": TaskAnswers(ids, tuple(row % 2 for row in range(n)), outcomes)})


def test_few_questions_show_nothing():
    """All six changed in one direction: McNemar's exact p is 2 / 2⁶, and of five 2 / 2⁵ > 0.05. Nothing read from them
    is a share in percent."""
    found = compare_arms(arms(a=few(0), b=few(6)))
    assert "majority class" not in "\n".join(lines(found))
    assert says(said(found), "6 independent questions", "too few", "6 against 0 right of 6")
    assert max(found.named[0].effects[MACRO].interval) == 1


def limited(max_length, *, cut):
    """A run with this limit, by which the first ``cut`` questions of each task were cut; ``None``: not known."""
    one = drawn(0, conditions=replace(CONDITIONS, max_length=max_length))
    tasks = {}
    for task, answers in one.tasks.items():
        known = () if cut is None else tuple(place < cut for place in range(len(answers.ids)))
        tasks[task] = replace(answers, truncated=known)
    return with_tasks(one, tasks)


def test_maximum_length_without_truncation_is_no_difference():
    """Two bases may have contexts of different lengths."""
    found = compare_arms(arms(a=limited(8_192, cut=0), b=limited(32_768, cut=0)))
    assert found.main is not None and found.main.effects[MACRO].difference == 0
    for one, other in ((0, 1), (1, 0), (1, 1), (None, 0), (0, None), (None, None)):
        with pytest.raises(UsageError, match=r"max_length: 8192 in .*, 32768 in .*"):
            compare_arms(arms(a=limited(8_192, cut=one), b=limited(32_768, cut=other)))
    assert compare_arms(arms(a=limited(8_192, cut=1), b=limited(8_192, cut=None))).main is not None
    long = limited(8_192, cut=0)
    boolq = replace(long.tasks["boolq"], truncated=limited(8_192, cut=1).tasks["boolq"].truncated)
    cut = with_tasks(long, {**long.tasks, "boolq": boolq})
    assert compare_arms(arms(a=cut, b=limited(32_768, cut=0)), tasks="siqa,obqa").main is not None, "not compared"


def test_independent_seeds_are_not_paired():
    """All runs of both arms count. A base is paired with every run, and a single run with another."""
    lora = {seed: drawn(seed, sizes=WIDE, gain=0.1) for seed in (0, 1, 2)}
    other = {seed: drawn(seed, sizes=WIDE, gain=0.2, rank=4) for seed in (7, 8, 9, 10)}
    assert compare_arms(arms(a={0: lora[0]}, b={7: other[7]})).main.paired
    for allowed, against, named in (
        ([], other, r"too few seeds in common.*--allow seeds"),
        (["seeds"], {7: other[7]}, r"a and b.*two or more runs of each arm unpaired"),
    ):
        with pytest.raises(UsageError, match=named):
            compare_arms(arms(a=lora, b=against), allowed=allowed)
    found = compare_arms(arms(a=lora, b=other), allowed=["seeds"])
    assert found.main is not None and found.main.seeds == 3 and not found.main.paired
    of_lora, of_other = (np.mean([accuracies(one) for one in arm.values()]) for arm in (lora, other))
    assert found.main.effects[MACRO].difference == pytest.approx(of_other - of_lora)
    fewer = {seed: other[seed] for seed in (7, 8)}
    ((_, *rows),) = tables(compare_arms(arms(a=lora, b=other, c=fewer), allowed=["seeds"]))
    assert [row[:2] for row in rows] == [["a", "3"], ["b", "4"], ["c", "2"]], "each arm with all its runs"
    untrained = compare_arms(arms(base=base(sizes=WIDE), b=other), allowed=["seeds"])
    assert untrained.main is not None and untrained.main.paired and untrained.main.seeds == 4


def named(experiment, contrast, *others):
    """Replace the contrasts of an experiment."""
    index = read_index(experiment)
    assert index is not None
    replace(index, contrast=contrast, others=others).write(experiment)


def copied(run, copies, *, grouped=True):
    """Return the run with this number of copies of each question."""
    tasks = {}
    for task, answers in run.tasks.items():
        ids = []
        for copy in range(copies):
            ids += [f"{task}/test/{copy}-{id}" for id in answers.ids]
        outcomes = {name: column * copies for name, column in answers.outcomes.items()}
        found = TaskAnswers(tuple(ids), answers.gold * copies, outcomes)
        if grouped:
            found = replace(found, clusters=answers.ids * copies)
        tasks[task] = found
    return with_tasks(run, tasks)


def test_clusters_of_one_evaluation_hold_for_all(capsys):
    """A task may have got its clusters after the first run was scored."""
    earlier = copied(drawn(0), 3, grouped=False)
    later = copied(drawn(1), 3)
    for runs in ((earlier, later), (later, earlier)):
        sizes = {task: np.bincount(codes).tolist() for task, codes in cluster_codes(runs).items()}
        assert sizes == {task: [3] * size for task, size in SIZES.items()}
    found = compare_arms([Arm("a", {0: earlier}), Arm("b", {0: later})])
    assert list(found.named[0].clusters) == list(SIZES)
    assert says(capsys.readouterr().out, "clusters", "boolq 180 in 60")
    assert not cluster_codes([earlier, earlier])
