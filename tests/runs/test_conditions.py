"""The conditions of an evaluation: read in both forms, and told apart by what a difference changes."""

import json
import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from compare_kit import ADAPTED, CONDITIONS
from moslora.errors import UsageError
from moslora.evaluation.journal import Journal
from moslora.runs.conditions import (
    AFFECTS_PREDICTIONS,
    Changes,
    Conditions,
    Endpoint,
    EvaluationHeader,
    Weights,
    differences,
    read_header,
)

EARLIER = Path(__file__).with_name("earlier")
"""What version 0.1.0 wrote as ``settings.json`` at a3bab9b1, one evaluation of each protocol, and a server's."""


def earlier(name, folder):
    """A folder with the settings of the earlier version, and these as they are written there."""
    shutil.copy(EARLIER / f"{name}.json", folder / "settings.json")
    return json.loads((folder / "settings.json").read_text("utf-8"))


@pytest.mark.parametrize("name", ["choice", "cloze", "generate", "server"])
def test_settings_of_an_earlier_version_are_upgraded(name, tmp_path):
    written = earlier(name, tmp_path)
    old = written["settings"]
    header = read_header(tmp_path)
    new = header.conditions
    for key in ("protocol", "format", "beams", "max_length", "data", "writing"):
        assert getattr(new, key) == old[key], key
    assert {**new.versions, **new.encoding} == old["made_with"] and "tokenizer" in new.encoding
    assert new.source == old["metadata"]["source"]
    assert {task: record.drift for task, record in header.tasks.items()} == {
        task: record["drift"] for task, record in written["tasks"].items()
    }
    (tmp_path / "settings.json").write_text(header.to_json(), encoding="utf-8")
    assert "metadata" not in (tmp_path / "settings.json").read_text("utf-8")
    assert read_header(tmp_path) == header
    Journal(tmp_path, new)  # goes on in either form


def test_the_model_in_settings_of_an_earlier_version(tmp_path):
    old = earlier("choice", tmp_path)["settings"]
    assert read_header(tmp_path).conditions.answered_by == Weights(
        "float32",
        "cpu",
        batch_tokens=2048,
        block_size=64,
        base="/models/small",
        fingerprint=old["metadata"]["fingerprint"],
        adapter=old["metadata"]["adapter"],
    )
    earlier("cloze", tmp_path)
    assert read_header(tmp_path).conditions.answered_by.quantization == "nf4, its scales not quantised"
    earlier("server", tmp_path)
    assert read_header(tmp_path).conditions.answered_by == Endpoint("http://localhost:8000", "small")


def test_every_field_is_marked_with_what_it_changes():
    for record in (Conditions, Weights, Endpoint):
        for field in fields(record):
            marks = [mark for mark in getattr(field.type, "__metadata__", ()) if isinstance(mark, Changes)]
            assert len(marks) == (field.name != "answered_by"), field.name


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"protocol": "choice"}, "protocol was cloze, is choice"),
        ({"writing": {"num_beams": 3}}, "writing.num_beams was null, is 3"),
        ({"encoding": {"tokenizer": "b"}}, "encoding.tokenizer was a, is b"),
        ({"data": {"boolq": "c"}}, "data.boolq was b, is c"),
        ({"answered_by": replace(ADAPTED, adapter=None)}, "adapter was abc, is null"),
        ({"answered_by": Endpoint("http://there", "")}, "server was null, is http://there"),
    ],
)
def test_an_evaluation_is_continued_only_under_equal_conditions(change, named, tmp_path):
    known = replace(CONDITIONS, data={"boolq": "b"}, encoding={"tokenizer": "a"}, versions={"torch": "v2"})
    Journal(tmp_path, known).record({})
    assert named in differences(known, replace(known, **change), *AFFECTS_PREDICTIONS)
    with pytest.raises(UsageError, match=named):
        Journal(tmp_path, replace(known, **change))
    moved = replace(known, answered_by=replace(ADAPTED, base="/elsewhere"), data={"boolq": "b", "obqa": "d"})
    assert Journal(tmp_path, moved).header.conditions == moved


def test_conditions_are_read_back_as_they_were_written():
    for conditions in (CONDITIONS, replace(CONDITIONS, answered_by=Endpoint("http://there", "small"))):
        header = EvaluationHeader(conditions, {})
        assert TypeAdapter(EvaluationHeader).validate_json(header.to_json()) == header
