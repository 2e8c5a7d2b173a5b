"""`moslora predict`: the answers are those of `moslora eval`, beside the rows as they were."""

import csv
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from changes_kit import write_jsonl
from cli_kit import run
from message_kit import says
from moslora.evaluation import predict as predict_module
from moslora.evaluation.evaluator import PreparedQuestions
from moslora.evaluation.scorers import Choice
from moslora.runs.evaluation import read_predictions
from server_kit import serving
from world_kit import write_rows

KINDS = ["billing", "technical", "other"]
OPTIONS = f"{{test: rows.jsonl, question: text, options: [{', '.join(KINDS)}], answer: kind}}"
WORDS = "{test: rows.jsonl, question: text, answer: kind, match: exact, max_new_tokens: 4, stop: []}"


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """A folder with a run, rows, of which one is there twice, and two tasks that describe them."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "run")
    write_rows(tmp_path, KINDS, "kind")
    rows = read("rows.jsonl")
    write_jsonl(tmp_path / "rows.jsonl", [*rows, rows[7]])
    for name, declared in (("kinds", OPTIONS), ("words", WORDS)):
        (tmp_path / f"{name}.yaml").write_text(f"tasks: {{{name}: {declared}}}", encoding="utf-8")
    return tmp_path


def read(path):
    with open(path, encoding="utf-8") as lines:
        return list(map(json.loads, lines))


def write_csv(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.mark.parametrize(
    ("task", "protocol"), [("kinds", "choice"), ("kinds", "cloze"), ("kinds", "generate"), ("words", "choice")]
)
def test_answers_are_those_of_eval(here, capsys, task, protocol):
    asked = ("--protocol", protocol)
    assert run(capsys, "eval", "run", "--tasks", f"{task}.yaml", *asked, "--out", "eval")[0] == 0
    rows = read("rows.jsonl")
    write_jsonl(here / "new.jsonl", [{"n": n, "text": row["text"]} for n, row in enumerate(rows)])
    code, said, _ = run(capsys, "predict", "run", "new.jsonl", "--task", f"{task}.yaml", *asked)
    assert code == 0 and says(said, "61 of 61 rows", "new-predicted.jsonl")
    expected = {int(one.id.rpartition("/")[2]): one for one in read_predictions(here / "eval")}
    for n, row in enumerate(read("new-predicted.jsonl")):
        of_eval = expected[n]
        assert (row["n"], row["text"]) == (n, rows[n]["text"])
        if of_eval.text is not None:
            answer = (
                of_eval.answer
                if task == "words"
                else [*KINDS, None][-1 if of_eval.prediction is None else of_eval.prediction]
            )
            assert (row["prediction"], row["written"]) == (answer, of_eval.text)
            continue
        scores = np.array(of_eval.scores)
        softmax = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        assert row["prediction"] == KINDS[int((scores / (of_eval.characters or 1)).argmax())]
        assert row["probabilities"] == pytest.approx(dict(zip(KINDS, softmax, strict=True)), abs=1e-6)
        assert row["probability"] == row["probabilities"][row["prediction"]]


def test_stopped_command_continues_to_the_same_bytes(here, capsys, monkeypatch):
    """Also where a line was half written, and in a file that grew."""
    predict = ("predict", "run", "rows.jsonl", "--task", "kinds.yaml", "--out")
    assert run(capsys, *predict, "whole.jsonl")[0] == 0
    (kept,) = here.glob("run/predictions/*/predictions.jsonl")
    lines = kept.read_bytes().splitlines(keepends=True)
    assert len(lines) == 60
    kept.write_bytes(b"".join(lines[:40]) + lines[40][:20])
    assert run(capsys, *predict, "again.jsonl")[0] == 0
    assert (here / "again.jsonl").read_bytes() == (here / "whole.jsonl").read_bytes()
    rows = read("rows.jsonl")
    write_jsonl(here / "rows.jsonl", [*rows, {"text": "fox and birds"}, rows[0]])
    monkeypatch.setattr(PreparedQuestions, "complete", counted := Counted(PreparedQuestions.complete))
    assert run(capsys, *predict, "grown.jsonl")[0] == 0
    assert counted.missing == 1
    assert read("grown.jsonl")[:61] == read("whole.jsonl")


class Counted:
    """Counts the questions that are missing when a model is asked."""

    def __init__(self, complete):
        self.complete = complete

    def __get__(self, prepared, _):
        def complete(model, journal):
            self.missing = len(prepared.missing(journal))
            return self.complete(prepared, model, journal)

        return complete


@pytest.mark.parametrize("kept", [predict_module.KEPT_TOKENS, 0])
def test_each_row_is_encoded_once_as_far_as_memory_allows(here, capsys, monkeypatch, kept):
    """60 different rows; of one set of options three are encoded before, to refuse what no row can be scored by."""
    encoded = []
    encode = Choice.encode
    monkeypatch.setattr(Choice, "encode", lambda scorer, example: encoded.append(example.id) or encode(scorer, example))
    monkeypatch.setattr(predict_module, "KEPT_TOKENS", kept)
    code, said, _ = run(capsys, "predict", "run", "rows.jsonl", "--task", "kinds.yaml", "--protocol", "choice")
    assert code == 0 and says(said, "61 of 61 rows")
    assert len(set(encoded)) == 60 and len(encoded) == (62 if kept else 122)


def test_a_spreadsheet_gets_its_own_kind_of_file_back(here, capsys):
    """Excel reads UTF-8 only behind a byte order mark, and separates by semicolons where the comma is decimal."""
    with open("excel.csv", "w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, delimiter=";").writerows([["text", "n"], ["größer, fox", "1"], ["a;b", "2"]])
    code, said, _ = run(capsys, "predict", "run", "excel.csv", "--task", "kinds.yaml")
    assert code == 0 and says(said, "excel.csv", "semicolons", "2 of 2 rows")
    with open("excel-predicted.csv", encoding="utf-8-sig", newline="") as file:
        header, *rows = csv.reader(file, delimiter=";")
    assert header[:3] == ["text", "n", "prediction"] and [row[:2] for row in rows] == [
        ["größer, fox", "1"],
        ["a;b", "2"],
    ]
    with open("excel-predicted.csv", encoding="utf-8") as file:
        assert file.read(1) == "\ufeff"


def test_a_server_answers_as_the_run_that_it_serves(here, served, capsys):
    predict = ("predict", served.path, "rows.jsonl", "--task", "kinds.yaml", "--out")
    assert run(capsys, *predict, "own.jsonl")[0] == 0
    pretended = served.pretended()
    with serving(pretended) as address:
        assert run(capsys, *predict, "served.jsonl", "--server", address)[0] == 0
        pretended.asked.clear()
        assert run(capsys, *predict, "again.jsonl", "--server", address)[0] == 0
    assert not any(body.get("echo") for body in pretended.asked), "what was answered is not asked again"
    for own, of_server, again in zip(*map(read, ("own.jsonl", "served.jsonl", "again.jsonl")), strict=True):
        assert of_server == again and own["prediction"] == of_server["prediction"]
        assert of_server["probabilities"] == pytest.approx(own["probabilities"], abs=1e-4)


def test_rows_keep_their_format(here, capsys):
    texts = ["birds, and\nstone", 'a "fox"', "birds, and\nstone", "rain über"]
    write_csv("a.csv", [["", "text", "id"], *[[n, text, f"00{n}"] for n, text in enumerate(texts)]])
    schema = pa.schema([("id", pa.int8()), ("text", pa.large_string())], metadata={"by": "me"})
    pq.write_table(pa.table({"id": range(4), "text": texts}, schema), "a.parquet")
    lines = [f'{{"x": 1.10, "text" :{json.dumps(text)} }}' for text in texts]
    (here / "a.jsonl").write_text("\r\n\n".join(lines), encoding="utf-8")
    for ending in ("csv", "parquet", "jsonl"):
        assert run(capsys, "predict", "run", f"a.{ending}", "--task", "kinds.yaml")[0] == 0
    with open("a-predicted.csv", encoding="utf-8", newline="") as file:
        header, *cells = csv.reader(file)
    assert header == ["", "text", "id", "prediction", "probability", "probabilities"]
    assert [row[:3] for row in cells] == [[str(n), text, f"00{n}"] for n, text in enumerate(texts)]
    table = pq.read_table("a-predicted.parquet")
    assert table.select(["id", "text"]).equals(pq.read_table("a.parquet")) and table.schema.metadata[b"by"] == b"me"
    as_lines = (here / "a-predicted.jsonl").read_text(encoding="utf-8").splitlines()
    assert [line.partition(', "prediction"')[0] for line in as_lines] == [line[:-2] for line in lines]
    predicted = [{**row, "probabilities": dict(row["probabilities"])} for row in table.to_pylist()]
    for row, of_table, line in zip(cells, predicted, map(json.loads, as_lines), strict=True):
        found = {name: line[name] for name in ("prediction", "probability", "probabilities")}
        assert found == {name: of_table[name] for name in found}
        assert found == {"prediction": row[3], "probability": float(row[4]), "probabilities": json.loads(row[5])}


def test_bad_rows_stop_or_are_skipped(here, capsys):
    """Those of the file, and one that the protocol cannot score."""
    (here / "own.yaml").write_text("tasks: {own: {test: x, question: text}}", encoding="utf-8")
    good = {"text": "fox", "options": ["rain", "birds"]}
    long = {"text": "fox", "options": ["rain " * 600, "birds"]}
    lines = [json.dumps(good), '{"text":', json.dumps({"text": "fox"}), "3", json.dumps(long), json.dumps(good)]
    (here / "bad.jsonl").write_text("\n".join(lines), encoding="utf-8")
    predict = ("predict", "run", "bad.jsonl", "--task", "own.yaml", "--protocol", "cloze")
    code, _, error = run(capsys, *predict)
    assert code == 2 and says(error, "bad.jsonl:2", "bad.jsonl:3", "'options'", "bad.jsonl:4", "--bad-rows skip")
    assert not (here / "bad-predicted.jsonl").exists()
    code, said, _ = run(capsys, *predict, "--bad-rows", "skip")
    assert code == 0 and says(said, "2 of 6 rows", "bad.jsonl:5", "max_length")
    found = (here / "bad-predicted.jsonl").read_text(encoding="utf-8").splitlines()
    assert found[1:5] == lines[1:5] and found[0] == found[5] and json.loads(found[0])["prediction"]
    write_csv("bad.csv", [["text", "options"], ["fox"], ["fox", "a"], ["fox", "a", "b"]])
    code, _, error = run(capsys, "predict", "run", "bad.csv", "--task", "kinds.yaml", "--bad-rows", "skip")
    with open("bad-predicted.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert code == 0 and [row[:3] for row in rows[1:]] == [["fox", "", ""], ["fox", "a", rows[2][2]], ["fox", "a", "b"]]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nothing.jsonl", "--task", "kinds.yaml"], "nothing.jsonl: no such file"),
        (["rows.json", "--task", "kinds.yaml"], ".jsonl, .csv, .tsv, .parquet"),
        (["rows.jsonl"], "--task"),
        (["rows.jsonl", "--task", "kinds.yaml,words.yaml"], "kinds, words"),
        (["rows.jsonl", "--task", "boolq"], "'question'"),
        (["rows.jsonl", "--task", "kinds.yaml", "--out", "rows.csv"], ".jsonl"),
        (["rows.jsonl", "--task", "kinds.yaml", "--out", "rows.jsonl"], "rows.jsonl: already exists"),
        (["taken.jsonl", "--task", "kinds.yaml"], "probability"),
        (["empty.jsonl", "--task", "kinds.yaml"], "no rows"),
        (["rows.jsonl", "--task", "kinds.yaml", "--server", "http://localhost:1", "--base"], "--server"),
    ],
)
def test_wrong_use_is_refused_before_torch_is_loaded(here, capsys, monkeypatch, arguments, named):
    write_jsonl(here / "taken.jsonl", [{"text": "fox", "probability": 1}])
    (here / "empty.jsonl").touch()
    monkeypatch.setattr(predict_module, "predict", lambda *_, **__: pytest.fail("asked"))
    before = sorted(here.rglob("*"))
    code, _, error = run(capsys, "predict", "run", *arguments)
    assert code == 2 and says(error, named) and sorted(here.rglob("*")) == before


def test_file_that_changes_meanwhile_is_not_labelled(here, capsys, monkeypatch):
    def changing(*arguments, **options):
        found = original(*arguments, **options)
        write_jsonl(here / "rows.jsonl", reversed(read("rows.jsonl")))
        return found

    original = predict_module.predict
    monkeypatch.setattr(predict_module, "predict", changing)
    predict = ("predict", "run", "rows.jsonl", "--task", "kinds.yaml")
    code, _, error = run(capsys, *predict)
    assert code == 1 and says(error, "rows.jsonl", "changed")
    assert not (here / "rows-predicted.jsonl").exists()
