"""The results' figures: of an experiment that was drawn at random, against its numbers and by hand."""

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from benchmarks.research import results
from compare_kit import base, base_row, drawn, row, with_tasks, with_texts, write_experiment
from moslora.compare.compared_run import ComparedRun

METHODS = ("lora", "moslora", "two-subspace", "flora", "lora-xs", "dora")
UNTRAINED = with_texts(base(gain=-0.02), 0.9)


@pytest.fixture(scope="module")
def drawn_folder(tmp_path_factory):
    """The later a method stands, the more it gains and the more it forgets; seed 1 forgets 0.02 more."""
    rows = [base_row(UNTRAINED)]
    for number, method in enumerate(METHODS):
        for seed in range(4):
            answers = with_texts(drawn(seed, gain=0.03 * number, arm=method), 1 + 0.01 * number + 0.02 * (seed == 1))
            rows.append(row(method, answers, rate=0.002))
    folder = tmp_path_factory.mktemp("drawn")
    return write_experiment(folder, rows, contrasts=[("lora", "moslora")])


def test_the_command_writes_figures(drawn_folder, tmp_path):
    results.main(drawn_folder, docs=tmp_path)
    others = {*METHODS} - {"lora"}
    named = {"forest": others, "forest-four": {"two-subspace", "moslora"}, "gain-and-forgetting": {*METHODS}}
    for name, arms in named.items():
        svg = (tmp_path / "results" / f"{name}.svg").read_text("utf-8")
        texts = {"".join(node.itertext()).strip() for node in ElementTree.fromstring(svg).iter()}
        assert texts & {*METHODS} == arms, name
        assert "var(" not in svg and "#1f2937" not in svg  # inks that a dark page would hide


def test_the_intervals_hold_for_all_arms_at_once(drawn_folder):
    found = results.load(drawn_folder)
    named = tuple(("lora", f"later-{number}") for number in range(7))
    for others, count in ((), 5), (named, 8):  # those drawn; all that were named
        some = replace(found, index=replace(found.index, others=others))
        contrasts = some.contrasts["log_probability"]
        assert list(contrasts) == list(METHODS[1:])
        for one, (interval, *_) in contrasts.values():
            distribution = one.effects["macro average"].distribution
            assert distribution.p(interval[0]) == pytest.approx(0.05 / count) == distribution.p(interval[1])


def test_two_arms_and_questions_that_one_run_lacks(tmp_path):
    """MoSLoRA with seed 1 lacks three, and the base five others."""

    def without(run: ComparedRun, task: str, count: int) -> ComparedRun:
        return with_tasks(run, {**run.tasks, task: run.tasks[task].only(run.tasks[task].ids[count:])})

    rows = [base_row(without(UNTRAINED, "siqa", 5))]
    for number, arm in enumerate(("lora", "moslora")):
        for seed in (0, 1):
            answers = with_texts(drawn(seed, gain=0.03 * number, arm=arm), 1)
            rows.append(row(arm, without(answers, "obqa", 3 * number * seed)))
    found = results.load(write_experiment(tmp_path, rows, contrasts=[("lora", "moslora")]))
    assert {*found.contrasts["accuracy"]} == {"moslora"}
    assert [len(arm.runs[0].tasks["obqa"].ids) for arm in found.arms] == [47, 47]
    lacking = [len(its.ids) - len(found.base.tasks[task].ids) for task, its in found.arms[0].runs[0].tasks.items()]
    assert sorted(lacking) == [0, 0, 0, 5], "the arms keep what the base alone was not asked"
    assert all(results.figures(found).values())
