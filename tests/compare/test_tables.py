"""The tables of an experiment: what is read is what was written, and what is damaged is refused."""

import json
import math
import random
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from cli_kit import run
from compare_kit import CONDITIONS, base, base_row, drawn, row, with_tasks, with_texts, write_experiment
from message_kit import says
from moslora.compare.index import EXPERIMENT
from moslora.compare.tables import ANSWERS, RUNS, TABLES, FinishedRun, read_tables, write_tables
from moslora.errors import MosloraError

UNTRAINED = with_texts(base(gain=-0.02), 0.9)


def rows():
    """Return the runs of two arms, a diverged run, a search and the base. Some questions are in clusters."""
    found = [FinishedRun("lora", rate, 7, "searched", loss) for rate, loss in ((1e-3, 2.5), (2e-3, math.inf))]
    for arm in ("lora", "mixed"):
        for seed in (0, 1):
            answers = with_texts(drawn(seed, arm=arm), 1 + 0.01 * seed)
            obqa = answers.tasks["obqa"]
            clusters = tuple(obqa.ids[place // 2] for place in range(len(obqa.ids)))
            answers = with_tasks(answers, {**answers.tasks, "obqa": replace(obqa, clusters=clusters)})
            known = {
                "validation_loss": 2.25 + seed,
                "seconds": 12.5,
                "parameters": 10,
                "device": "a CPU",
                "begun": "now",
            }
            found.append(row(arm, answers, **known))
    found.append(FinishedRun("mixed", 1e-3, 2, "scored", math.inf, diverged=True))
    return [*found, base_row(UNTRAINED)]


def assert_same_answers(read, written):
    """Compare two evaluations in single precision."""
    if written is None:
        assert read is None
        return
    assert read is not None and list(read.tasks) == list(written.tasks), "in the order in which they were asked"
    for task, answers in written.tasks.items():
        found = read.tasks[task]
        assert (found.ids, found.gold, found.clusters) == (answers.ids, answers.gold, answers.clusters)
        assert found.outcomes.keys() == answers.outcomes.keys()
        for outcome, column in answers.outcomes.items():
            assert found.outcomes[outcome] == tuple(np.array(column, np.float32).astype(float).tolist())


def assert_same(read, written):
    assert [replace(one, evaluation=None) for one in read] == [replace(one, evaluation=None) for one in written]
    for one, other in zip(read, written, strict=True):
        assert_same_answers(one.evaluation, other.evaluation)


def test_what_is_read_is_what_was_written(tmp_path):
    folder = write_experiment(tmp_path, rows(), contrasts=[("lora", "mixed")])
    found = read_tables(folder)
    assert_same(found, rows())
    scored = [one for one in found if one.role == "scored" and not one.diverged]
    for one in scored:
        assert one.evaluation is not None and one.evaluation.conditions == CONDITIONS
        assert_same_answers(one.evaluation.base, UNTRAINED.evaluation)


def test_same_runs_give_the_same_bytes(tmp_path):
    folder = write_experiment(tmp_path, rows(), contrasts=[("lora", "mixed")])
    first = [(folder / name).read_bytes() for name in TABLES]
    write_tables(folder, rows())
    assert [(folder / name).read_bytes() for name in TABLES] == first
    write_tables(folder, rows()[:-1])
    assert_same(read_tables(folder), rows()[:-1])
    assert not read_tables(tmp_path / "elsewhere")


def test_unknown_columns_are_ignored(tmp_path):
    folder = write_experiment(tmp_path, rows(), contrasts=[("lora", "mixed")])
    for name in TABLES:
        table = parquet.read_table(folder / name)
        parquet.write_table(table.append_column("remark", pa.array(["x"] * len(table))), folder / name)
    assert_same(read_tables(folder), rows())


def test_a_damaged_file_is_refused_in_one_line(tmp_path):
    """A file cut off anywhere is refused, and nearly every changed bit of its columns."""
    folder = write_experiment(tmp_path, rows(), contrasts=[("lora", "mixed")])
    draw = random.Random(0)
    unnoticed = 0
    for name in TABLES:
        whole = (folder / name).read_bytes()
        footer = int.from_bytes(whole[-8:-4], "little") + 8
        for _ in range(12):
            place = draw.randrange(4, len(whole) - footer)
            flipped = bytes([whole[place] ^ 1 << draw.randrange(8)])
            (folder / name).write_bytes(whole[:place] + flipped + whole[place + 1 :])
            try:
                assert_same(read_tables(folder), rows())
                unnoticed += 1
            except MosloraError as fault:
                assert says(str(fault), name) and "\n" not in str(fault)
            (folder / name).write_bytes(whole[: draw.randrange(len(whole))])
            with pytest.raises(MosloraError, match=name):
                read_tables(folder)
        (folder / name).write_bytes(whole)
    assert unnoticed < 6


def test_a_foreign_or_missing_file_is_refused_in_one_line(tmp_path, capsys):
    folder = write_experiment(tmp_path, rows(), contrasts=[("lora", "mixed")])
    whole = {name: (folder / name).read_bytes() for name in (*TABLES, EXPERIMENT)}
    card = json.loads(whole[EXPERIMENT])
    foreign = pa.BufferOutputStream()
    parquet.write_table(pa.table({"arm": [1]}), foreign)
    for name, content, *words in (
        (ANSWERS, whole[RUNS], "missing, damaged, or not of an experiment"),
        (RUNS, foreign.getvalue().to_pybytes(), "missing, damaged, or not of an experiment"),
        (RUNS, None, "missing"),
        (EXPERIMENT, json.dumps({key: value for key, value in card.items() if key != "card"}).encode(), "pack"),
        (EXPERIMENT, json.dumps(card | {"margin": "a fifth"}).encode(), "not an experiment's file"),
    ):
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)
        code, _, errors = run(capsys, "compare", folder)
        assert code and errors.count("\n") == 1 and says(errors, name, *words), errors
        (folder / name).write_bytes(whole[name])
