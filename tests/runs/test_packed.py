"""Packed experiments: what is read is what was written, bit for bit, and what is damaged is refused."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from compare_kit import base, drawn, packed
from moslora.errors import MosloraError
from moslora.recipe import load_recipe
from moslora.runs.answers import TaskAnswers
from moslora.runs.outcomes import with_outcomes
from moslora.runs.packed import (
    ANSWERS,
    COLUMNS,
    METRICS,
    RUNS,
    PackedRun,
    packed_run,
    read_packed,
    write_packed,
)
from moslora.runs.predictions import Prediction, argmax
from moslora.runs.run import Run

SCORES = st.floats(-1e4, 0)
"""Any; evaluations round theirs."""


def run(**answers: TaskAnswers) -> PackedRun:
    """A run with these answers, by task."""
    found = {task: with_outcomes(its) for task, its in answers.items()}
    return replace(packed(drawn(0)), settings={"cloze": "{}"}, answers={"cloze": found})


@st.composite
def questions(draw: st.DrawFn, *, rounded: bool) -> TaskAnswers:
    """Answers to questions with two to four options, under the protocols that have scores."""
    count = draw(st.integers(1, 5))
    per_character = draw(st.booleans())
    made = []
    for number in range(count):
        scores = draw(st.lists(SCORES, min_size=2, max_size=4))
        if rounded:
            scores = [round(score, 6) for score in scores]
        characters = [draw(st.integers(1, 300)) for _ in scores] if per_character else []
        gold = draw(st.integers(0, len(scores) - 1))
        best = argmax(scores)
        cut = draw(st.booleans())
        made.append(Prediction(f"t/{number}", "t", gold, best, tuple(scores), tuple(characters), truncated=cut))
    return TaskAnswers.of(made)


@settings(max_examples=40, deadline=None)
@given(questions(rounded=True), questions(rounded=False))
def test_every_float_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, first: TaskAnswers, second: TaskAnswers
) -> None:
    """Whole millionths of a nat, and other scores; two runs of which one has the other's task and one of its own."""
    folder = tmp_path_factory.mktemp("packed")
    for runs in ({"one": run(t=first)}, {"one": run(t=first), "two": run(t=second, u=first)}):
        write_packed(folder, runs)
        assert dict(read_packed(folder)) == runs


def test_every_kind_of_answers_is_read_as_it_was_written(tmp_path: Path) -> None:
    generated = [
        Prediction("g/0", "g", gold=1, prediction=1, text="it is b", answer="b"),
        Prediction("g/1", "g", gold=0, prediction=None, text="…\n,\"'", answer=""),
    ]
    no_answer = [replace(one, task="n", prediction=None, answer="") for one in generated]
    texts = [Prediction(f"w/{i}", "w", gold=0, prediction=0, scores=(-100.5 - i,), bytes=300 + i) for i in range(3)]
    asked = {name: TaskAnswers.of(its) for name, its in (("g", generated), ("n", no_answer), ("w", texts))}
    runs = {"words": run(**asked), "outcomes": packed(drawn(3), base=base()), "nothing": replace(run(), settings={})}
    write_packed(tmp_path, runs)
    assert dict(read_packed(tmp_path)) == {**runs, "nothing": replace(runs["nothing"], answers={})}
    assert list(read_packed(tmp_path)["words"].answers["cloze"]) == ["g", "n", "w"], (
        "in the order in which it was asked"
    )


def test_a_number_that_was_not_finite_is_none_and_one_that_was_not_recorded_is_not_there(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"step": 1, "loss": 0.1 + 0.2, "grad_norm": None, "rank_budget": 4},
        {"step": 2, "validation_loss": 1e-300},
        {"step": 3, "loss": -0.0, "grad_norm": 5.0, "device": "gpu"},
    ]
    runs = {"a": replace(run(), metrics=rows), "b": replace(run(), metrics=rows[:1])}
    write_packed(tmp_path, runs)
    assert [list(read_packed(tmp_path)[name].metrics) for name in runs] == [rows, rows[:1]]


def test_the_same_runs_are_the_same_bytes(tmp_path: Path) -> None:
    runs = {f"run-{seed}": packed(drawn(seed)) for seed in range(3)}
    write_packed(tmp_path, runs)
    first = [(tmp_path / name).read_bytes() for name in COLUMNS]
    write_packed(tmp_path, dict(reversed(runs.items())))
    assert [(tmp_path / name).read_bytes() for name in COLUMNS] == first


def test_a_folder_takes_the_place_of_the_packed_run(tmp_path: Path) -> None:
    write_packed(tmp_path, {"one": packed(drawn(1))})
    place = tmp_path / "runs" / "one"
    assert packed_run(place) == packed(drawn(1))
    assert packed_run(place.with_name("two")) is None and packed_run(tmp_path / "others" / "one") is None
    (place / "report").mkdir(parents=True)
    assert packed_run(place) == packed(drawn(1))
    (place / "recipe.yaml").touch()
    assert packed_run(place) is None


def test_a_packed_recipe_grants_no_trust(tmp_path: Path) -> None:
    """Neither by itself nor by a file that it extends: its author may be anyone."""
    trusting = "model: {name: smollm2-135m, trust_remote_code: true}\ntraining: {epochs: 1}\n"
    (tmp_path / "trusting.yaml").write_text(trusting)
    assert load_recipe(tmp_path / "trusting.yaml").model.trust_remote_code
    recipes = {"own": trusting, "extending": f"extends: {tmp_path / 'trusting.yaml'}\n"}
    write_packed(tmp_path, {name: replace(packed(drawn(0)), recipe=text) for name, text in recipes.items()})
    for name in recipes:
        recipe = Run(tmp_path / "runs" / name).recipe
        assert (recipe.model.name, recipe.model.trust_remote_code) == ("smollm2-135m", False), name


def test_what_changed_is_read_again(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_packed(tmp_path, {"one": packed(drawn(seed))})
        assert read_packed(tmp_path)["one"] == packed(drawn(seed))


def test_columns_are_those_of_the_file(tmp_path: Path) -> None:
    """Another program reads the numbers without this one."""
    write_packed(tmp_path, {"one": run(t=TaskAnswers.of([Prediction("t/0", "t", 1, 1, (-1.5, -0.25), (3, 2))]))})
    (row,) = parquet.read_table(tmp_path / ANSWERS).to_pylist()
    assert row["folder"] == "one" and row["scores"] == [-1_500_000, -250_000] and row["characters"] == [3, 2]
    assert json.loads(parquet.read_table(tmp_path / RUNS)["card"][0].as_py())["steps"] == 50


def test_an_unknown_column_is_ignored(tmp_path: Path) -> None:
    runs = {"one": packed(drawn(1))}
    write_packed(tmp_path, runs)
    table = parquet.read_table(tmp_path / ANSWERS)
    names = [*table.column_names, "cluster"]
    table = table.append_column("cluster", pa.array(range(len(table))))
    parquet.write_table(table.replace_schema_metadata({"columns": ",".join(names)}), tmp_path / ANSWERS)
    assert dict(read_packed(tmp_path)) == runs


def test_a_damaged_or_foreign_file_is_refused_in_one_line(tmp_path: Path) -> None:
    """Any bit of any file: what is read is refused, or the same."""
    runs = {f"run-{seed}": packed(drawn(seed, sizes={"obqa": 9})) for seed in (1, 2)}
    runs["run-1"] = replace(runs["run-1"], metrics=[{"step": 1, "loss": 0.5}])
    write_packed(tmp_path, runs)
    draw = random.Random(0)
    refused = 0
    for name in COLUMNS:
        whole = (tmp_path / name).read_bytes()
        for _ in range(80):
            place = draw.randrange(len(whole))
            flipped = bytes([whole[place] ^ 1 << draw.randrange(8)])
            for damaged in (whole[:place], whole[:place] + flipped + whole[place + 1 :]):
                (tmp_path / name).write_bytes(damaged)
                try:
                    assert dict(read_packed(tmp_path)) == runs, (name, place)
                except MosloraError as fault:
                    assert str(fault).startswith(str(tmp_path / name)) and "\n" not in str(fault)
                    refused += 1
        (tmp_path / name).write_bytes(whole)
    assert refused > 360
    parquet.write_table(pa.table({"folder": ["run-1"]}), tmp_path / RUNS)
    with pytest.raises(MosloraError, match=RUNS):
        read_packed(tmp_path)
    (tmp_path / METRICS).unlink()
    with pytest.raises(MosloraError, match=rf"{METRICS}: missing"):
        read_packed(tmp_path)
