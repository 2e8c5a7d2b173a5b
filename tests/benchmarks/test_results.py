"""The results' figures and tables: of an experiment that was drawn at random, against its numbers and by hand."""

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.article import results
from compare_kit import base, base_row, drawn, row, with_tasks, with_texts, write_experiment
from message_kit import says
from moslora.compare.tables import TableRun, read_tables, write_tables
from moslora.experiment.tables import mean_over_seeds
from moslora.report.figures.forgetting import change
from moslora.runs.evaluation import Evaluation

METHODS = ("lora", "moslora", "two-subspace", "flora", "lora-xs", "dora")
SEEDS = (0, 1, 2, 3)
UNTRAINED = with_texts(base(gain=-0.02), 0.9)


def write_drawn(
    folder: Path,
    *,
    methods: Sequence[str] = METHODS,
    seeds: Sequence[int] = SEEDS,
    untrained: Evaluation | None = None,
) -> Path:
    """The later a method stands, the more it gains and the more it forgets; seed 1 forgets 0.02 more."""
    rows = [base_row(untrained or UNTRAINED)]
    recipes = {}
    for number, method in enumerate(methods):
        recipes[method] = (f"extends=methods/{method}",)
        for seed in seeds:
            answers = with_texts(drawn(seed, gain=0.03 * number, arm=method), 1 + 0.01 * number + 0.02 * (seed == 1))
            rows.append(row(method, answers, rate=0.002, parameters=1000 + number))
    return write_experiment(folder, rows, contrasts=[("lora", "moslora")], recipes=recipes)


@pytest.fixture(scope="module")
def drawn_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drawn(tmp_path_factory.mktemp("drawn"))


def test_the_command_writes_tables_and_figures(
    drawn_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "results.md"
    marks = "arms", "conclusions", "forgetting"
    page.write_text("".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in marks), "utf-8")
    monkeypatch.setattr(sys, "argv", ["results.py", str(drawn_folder), "--docs", str(page)])
    assert results.main() == 0
    text = page.read_text("utf-8")
    header, untrained, *rows = (
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in re.findall(r"^\|.*\|$", text, re.M)
        if "---" not in line
    )
    assert [row[0] for row in rows] == list(METHODS) and untrained[0] == "base"
    assert {len(row) for row in rows} == {len(header)} and {row[1] for row in rows} == {"0.002"}
    assert [row[header.index("trained parameters")] for row in rows] == [f"{1000 + n:,}" for n in range(len(METHODS))]
    methods = (results.DOCS / "methods.md").read_text("utf-8")
    (measured,) = re.findall(r"^\| `lora` \|.*?\| (\d\.\d\d \(.*?\)) \|", methods, re.M)
    assert rows[0][header.index("step time / LoRA's")] == measured
    of_gain, of_forgetting = re.findall(r"^\* moslora predicts (.*) than lora \((.*?):", text, re.M)
    assert of_gain[0].endswith("nats better") and of_gain[1] == "95 % over 4 seeds"
    assert says(of_forgetting[0], "texts 0.0100 nats per byte WORSE") and of_forgetting[1] == of_gain[1]
    others = {*METHODS} - {"lora"}
    named = {"forest": others, "forest-four": {"two-subspace", "moslora"}, "gain-and-forgetting": {*METHODS}}
    for name, arms in named.items():
        svg = (tmp_path / "results" / f"{name}.svg").read_text("utf-8")
        shown = {
            "".join(node.itertext()).strip() for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("text")
        }
        assert shown & {*METHODS} == arms, name
        assert "var(" not in svg and "#1f2937" not in svg  # inks that a dark page would hide


def test_the_means_are_those_of_the_runs(drawn_folder: Path) -> None:
    """Gain and forgetting, and the table's cells, from the columns that were written."""
    found, untrained = results.load(drawn_folder), base(gain=-0.02)
    for number, arm in enumerate(found.arms):
        pairs = [(drawn(seed, gain=0.03 * number, arm=arm.name), run) for seed, run in arm.runs.items()]
        means = [np.mean([np.mean(its.outcomes["accuracy"]) for its in written.tasks.values()]) for written, _ in pairs]
        shown = f"{100 * np.mean(means):.1f} ± {100 * np.std(means, ddof=1) / 2:.1f}"
        assert mean_over_seeds(list(arm.runs.values()), "accuracy") == shown
        for seed, (written, run) in enumerate(pairs):
            forgotten = change("nats_per_byte", run, found.base)
            assert forgotten == pytest.approx(0.1 + 0.01 * number + 0.02 * (seed == 1))
            gained = [
                np.mean(its.outcomes["log_probability"]) - np.mean(untrained.tasks[task].outcomes["log_probability"])
                for task, its in written.tasks.items()
            ]
            assert change("log_probability", run, found.base) == pytest.approx(np.mean(gained))


def test_the_intervals_hold_for_all_arms_at_once(drawn_folder: Path) -> None:
    found = results.load(drawn_folder)
    named = tuple(("lora", f"later-{number}") for number in range(7))
    for others, count in ((), 5), (named, 8):  # those drawn; all that were named
        some = replace(found, index=replace(found.index, others=others))
        contrasts = some.contrasts["log_probability"]
        assert list(contrasts) == list(METHODS[1:])
        for one, (interval, *_) in contrasts.values():
            law = one.effects["macro average"].law
            assert law.p(interval[0]) == pytest.approx(0.05 / count) == law.p(interval[1])
    assert some.left_out == ""


def without_three_of_obqa(run: TableRun) -> TableRun:
    """The run of MoSLoRA with seed 1 without some of its answers; others as they are."""
    if (run.arm, run.seed) != ("moslora", 1) or run.evaluation is None:
        return run
    tasks = run.evaluation.tasks
    fewer = {**tasks, "obqa": tasks["obqa"].only(tasks["obqa"].ids[3:])}
    return replace(run, evaluation=replace(run.evaluation, tasks=fewer))


def test_two_arms_and_questions_that_one_run_lacks(tmp_path: Path) -> None:
    siqa = UNTRAINED.tasks["siqa"]
    untrained = with_tasks(UNTRAINED, {**UNTRAINED.tasks, "siqa": siqa.only(siqa.ids[5:])})
    write_drawn(tmp_path, methods=("lora", "moslora"), seeds=(0, 1), untrained=untrained)
    write_tables(tmp_path, [without_three_of_obqa(one) for one in read_tables(tmp_path)])
    found = results.load(tmp_path)
    assert {*found.contrasts["accuracy"]} == {"moslora"} and "left out: 3 of obqa" in found.left_out
    lacking = [len(its.ids) - len(found.base.tasks[task].ids) for task, its in found.arms[0].runs[0].tasks.items()]
    assert sorted(lacking) == [0, 0, 0, 5], "the arms keep what the base alone was not asked"
    table = results.arms_table(found)
    assert "| base" not in table and found.left_out in table
    assert all(results.figures(found).values())
