"""Rows of CSV and Parquet: what a template sees, against what was written, and what is said of faults."""

import csv
import datetime
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from changes_kit import write_jsonl
from moslora.data.local import read_file
from moslora.data.row_files import read_rows
from moslora.data.sources import load_examples, load_training
from moslora.errors import UsageError
from moslora.recipe import load_recipe
from moslora.tasks import Example

ROWS = [
    {"asked": f'No. {n}: what, in "short",\nis it?', "a": "007", "b": f"{n}.50", "right": str(n % 2)} for n in range(20)
]
DECLARED = ["question=asked", "options='[a, b]'", "answer=right|int"]


def write_csv(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    return path


WRITE = {"csv": write_csv, "jsonl": write_jsonl, "parquet": write_parquet}


def own(path, *declared):
    keys = (f"train={json.dumps(str(path))}", *(declared or DECLARED))
    return load_recipe("smollm2-135m", [f"tasks.mine.{key}" for key in keys]).own_tasks["mine"]


def seen(path):
    """The rows as a template sees them."""
    rows = []

    def read(row, number):
        assert number == len(rows)
        rows.append(row)
        return Example(str(number), "mine", "", ("",), 0)

    read_rows(path, read)
    return rows


def test_file_formats_give_equal_questions(tmp_path):
    """Quotes, commas and line breaks in a cell, and texts that look like numbers."""
    tasks = [own(write(tmp_path / f"rows.{kind}", ROWS)) for kind, write in WRITE.items()]
    expected, *others = (
        [*load_examples(task, "train", source="wheel"), *load_training([task], source="hub")] for task in tasks
    )
    assert len(expected) == 36 and expected[0].choices[0] == "007"
    assert all(found == expected for found in others)


def test_free_rows_and_texts_are_read_from_tables(tmp_path):
    free = [{"prompt": "Name it, please.", "completion": f"{n:03}"} for n in range(3)]
    full = [{"instruction": "Add.", "input": "", "output": f"{n:03}", "answer": "1", "task": ""} for n in range(3)]
    for kind, write in WRITE.items():
        for rows in (free, full):
            found = read_file(write(tmp_path / f"rows.{kind}", rows), "train")
            assert [example.choices for example in found] == [("000",), ("001",), ("002",)]
        texts = write(tmp_path / f"texts.{kind}", [{"text": "One.\n\nStill one.", "n": "1"}])
        task = load_recipe("smollm2-135m", [f"tasks.mine.texts={texts}"]).own_tasks["mine"]
        assert [row.choices for row in load_examples(task, "test", source="wheel")] == [("One.\n\nStill one.",)]


def test_a_csv_cell_is_its_text(tmp_path):
    """Nothing is guessed, unlike by pandas: not a number, a date, a truth, or that NA is nothing."""
    cells = ["007", "1e5", "2.50", "TRUE", "NA", "null", "", " ", "2020-01-01", "9" * 30, "é", "x" * 200_000]
    assert [
        row["x"] for row in seen(write_csv(tmp_path / "rows.csv", [{"x": cell, "y": "1"} for cell in cells]))
    ] == cells


def test_a_csv_file_as_other_programs_write_it(tmp_path):
    path = tmp_path / "Rows.CSV"
    path.write_bytes('\ufeff, a ,b\r\n0,1,"x,\r\ny"\r\n\r\n1,2,z\r\n'.encode())
    assert seen(path) == [{"a": "1", "b": "x,\r\ny"}, {"a": "2", "b": "z"}]


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_separators_of_a_csv_file_are_found(tmp_path, delimiter, encoding, name):
    """Also if names and cells contain the other separators."""
    rows = [
        {"asked (a; b)": f'Is "{n}" a;b, or\tc?\n"Yes"; no' + "; " * n, "a, b": "x;y" * n, "right": str(n)}
        for n in range(5)
    ]
    with (tmp_path / name).open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    assert seen(tmp_path / name) == rows


def test_separator_is_the_one_that_most_rows_fit(tmp_path):
    """Names without quotes, and one row with a fault."""
    path = tmp_path / "rows.csv"
    path.write_text("asked (a; b),right\nis; it,1\nwas it,0\na,b,c\n")
    with pytest.raises(UsageError, match=r"row 3: has 3 cells.*2 columns; a text with a comma"):
        seen(path)


def test_parquet_keeps_its_types(tmp_path):
    rows = [
        {
            "id": "007",
            "n": 7,
            "x": 2.5,
            "none": None,
            "options": ["a", "b"],
            "of": {"stem": "q"},
            "day": datetime.date(2020, 1, 1),
        },
        {"id": "8", "n": None, "x": None, "none": None, "options": [], "of": None, "day": None},
    ]
    assert seen(write_parquet(tmp_path / "rows.parquet", rows)) == rows
    task = own(write_parquet(tmp_path / "rows.parquet", rows[:1] * 2), "question=of.stem", "answer=n - 6", "test=x")
    example, _ = load_examples(task, "train", source="wheel")
    assert (example.question, example.choices, example.gold) == ("q", ("a", "b"), 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("asked,a,b,right\nq,1,2,0\nq,1,2\n", [": row 2: has 3 cells", "names 4 columns"]),
        ("asked,a,b,right\nq,1,2,0\nq,1,2,x\nq,1,2,y\n", [": row 2: answer", ": row 3: answer"]),
        ('asked,a,b,right\n"q\nr",1,2,0\nq,1,"2"x,0\n', [":4: malformed CSV"]),
        ('asked,a,b,right\n"q",1,2,0\n"q,1,2,0\nq,1,2,0\n', [":3: malformed CSV", "quote"]),
        ("asked;a;b;right\nq;1;2;0\nq;1;2\n", [": row 2: has 3 cells", "names 4 columns", "semicolon"]),
        ("asked|a|b|right\nq|1|2|0\n", [": row 1: question: 'asked' is undefined; the row has asked|a|b|right"]),
        ("asked,a;right\nq,1;0\n", ["ambiguous", "asked | a;right", "asked,a | right"]),
        ("asked,a,a,right\nq,1,2,0\n", ["the same name", "a, a"]),
        ("asked,a,b,right\n", [": contains no rows"]),
        ("asked,a,b,right\nä,1,2,0\n", ["cannot be read as UTF-8", "save it as UTF-8"]),
    ],
)
def test_faults_of_a_csv_file_have_their_place(tmp_path, text, said):
    path = tmp_path / "rows.csv"
    path.write_bytes(text.encode("latin-1"))
    declared = ["question=asked", "options='[a, b]'", "answer=\"['0', '1'].index(right)\""]
    with pytest.raises(UsageError) as error:
        load_training([own(path, *declared)], source="wheel")
    lines = str(error.value).splitlines()
    assert all(line.startswith(str(path)) for line in lines)
    assert [part for part in said if part not in str(error.value)] == [], lines


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_text("asked,a,b,right"), "cannot be read as Parquet"),
        (lambda path: path.write_bytes(path.read_bytes()[:700]), "cannot be read as Parquet"),
        (lambda path: pq.write_table(pa.Table.from_pylist(ROWS).slice(0, 0), path), "contains no rows"),
        (
            lambda path: write_parquet(path, [*ROWS[:4], {**ROWS[4], "asked": None}]),
            ": row 5: question: expected a text",
        ),
    ],
)
def test_faults_of_a_parquet_file(tmp_path, damage, said):
    path = write_parquet(tmp_path / "rows.parquet", ROWS)
    damage(path)
    with pytest.raises(UsageError) as error:
        load_training([own(path)], source="wheel")
    (line,) = str(error.value).splitlines()
    assert line.startswith(str(path)) and said in line
