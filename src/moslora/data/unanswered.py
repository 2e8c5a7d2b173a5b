"""Rows without answers: read from a file as questions, and written again with columns beside their own."""

import csv
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

from moslora.choices import BadRows
from moslora.data.row_files import located_rows, read_each, text_of
from moslora.data.sources import data_hash
from moslora.errors import MosloraError, UsageError, by_row, did_you_mean
from moslora.files import near_folders, replacing, sha256
from moslora.tasks import Example, Task

ADDED = ("prediction", "probability", "probabilities", "written")
"""The columns that are written beside a row's own: the answer; of an answer among options its probability, and those of
all options; of an answer in words the whole text."""

Columns = Mapping[str, Any]
"""Column -> its value in a row; empty for a row without a prediction."""


@dataclass(frozen=True)
class Row:
    """A row of a file: its place, for messages, and its question, or the error that says why it has none."""

    place: str
    question: Example | Exception


@dataclass(frozen=True)
class RowFile:
    """A file of rows that a model is to answer.

    Attributes:
        path: of the file.
        sha256: of its bytes when it was read.
        rows: in the file's order.
    """

    path: Path
    sha256: str
    rows: tuple[Row, ...]

    @property
    def questions(self) -> dict[str, Example]:
        """Id -> question, each once, in the order in which they are first there."""
        return {row.question.id: row.question for row in self.rows if isinstance(row.question, Example)}

    @property
    def faults(self) -> dict[str, list[str]]:
        """What is wrong with rows -> their places."""
        faults = defaultdict(list)
        for row in self.rows:
            if isinstance(row.question, Exception):
                faults[str(row.question)].append(row.place)
        return faults

    def refuse_bad_rows(self, bad_rows: BadRows) -> None:
        """Refuses rows that have no question, unless they are to be skipped and others have one."""
        if self.faults and (bad_rows == "stop" or not self.questions):
            fix = "correct these rows, or the task; --bad-rows skip leaves them without a prediction"
            raise UsageError(f"{by_row(self.faults)}\n{fix}")
        if not self.rows:
            raise UsageError(f"{self.path}: contains no rows")

    def write(self, columns: Sequence[Columns], out: Path) -> None:
        """Writes the rows as they are, each with its ``columns``, into a file of the same kind.

        Raises:
            MosloraError: the file has changed since it was read.
        """
        with replacing(out) as new:
            if sha256(self.path) != self.sha256:
                raise MosloraError(f"{self.path}: has changed meanwhile; the same command asks what is new")
            WRITERS[self.path.suffix.lower()](self.path, columns, new)


def read_unanswered(path: Path, task: Task) -> RowFile:
    """The rows of a file as questions of ``task``. A question's id is the hash of what is asked: equal ones have one.

    Raises:
        UsageError: the file cannot be read, or has another ending than those of `WRITERS`.
    """
    if path.suffix.lower() not in WRITERS:
        raise UsageError(f"{path}: must be a file of rows, whose name ends in {', '.join(WRITERS)}")
    if not path.is_file():
        fix = did_you_mean(near_folders(path), otherwise="it must have a row per question")
        raise UsageError(f"{path}: no such file; {fix}")

    def read(row: dict[str, Any], number: int) -> Example:
        taken = [name for name in ADDED if name in row]
        if taken:
            raise ValueError(f"{', '.join(taken)}: is the name of a column that predict writes; rename it")
        question = task.unanswered(row, "")
        return replace(question, id=f"{task.name}/{data_hash([question])[:16]}")

    rows = [Row(f"{path}{location}", question) for location, question in read_each(located_rows(path), read)]
    return RowFile(path, sha256(path), tuple(rows))


def _write_lines(path: Path, columns: Sequence[Columns], new: Path) -> None:
    """JSONL: a row without columns stays as it is."""
    rows = [line.rstrip() for line in text_of(path).split("\n") if line.strip()]
    lines = []
    for row, its in zip(rows, columns, strict=True):
        added = json.dumps(its, ensure_ascii=False)
        lines.append(f"{row[:-1].rstrip()}, {added[1:]}\n" if its else f"{row}\n")
    new.write_text("".join(lines), encoding="utf-8", newline="")


def _write_cells(path: Path, columns: Sequence[Columns], new: Path) -> None:
    """CSV: probabilities of several options are JSON."""
    names = _names(columns)
    header, *rows = [cells for cells in csv.reader(StringIO(text_of(path), newline="")) if cells]
    with new.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*header, *names])
        for row, its in zip(rows, columns, strict=True):
            missing = [""] * (len(header) - len(row))
            writer.writerow([*row, *missing, *(_cell(its.get(name)) for name in names)])


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value


def _write_parquet(path: Path, columns: Sequence[Columns], new: Path) -> None:
    """Parquet: probabilities of several options are a map."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"probability": pa.float64(), "probabilities": pa.map_(pa.string(), pa.float64())}
    with pq.ParquetFile(path) as file:
        table = file.read()
    for name in _names(columns):
        values = [its.get(name) for its in columns]
        cells = [list(value.items()) if isinstance(value, dict) else value for value in values]
        table = table.append_column(name, pa.array(cells, types.get(name, pa.string())))
    pq.write_table(table, new)


def _names(columns: Sequence[Columns]) -> list[str]:
    """The names of columns that a row has."""
    return [name for name in ADDED if any(name in its for its in columns)]


WRITERS: Mapping[str, Callable[[Path, Sequence[Columns], Path], None]] = {
    ".jsonl": _write_lines,
    ".csv": _write_cells,
    ".parquet": _write_parquet,
}
"""Ending -> what writes such a file."""
