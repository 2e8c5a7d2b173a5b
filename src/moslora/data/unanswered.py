"""Rows without answers: read from a file as questions, and written again with columns for the answers."""

import codecs
import csv
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

from moslora.choices import BadRows
from moslora.data.row_files import delimiter_of, located_rows, read_each, text_of
from moslora.data.sources import data_hash
from moslora.errors import MosloraError, UsageError, by_row, did_you_mean
from moslora.files import near_folders, replacing, sha256
from moslora.tasks import Example, Task

ADDED = ("prediction", "probability", "probabilities", "written")
"""Names of the added columns: the answer; for options its probability, and the probabilities of all options; for
answers
in words the whole text."""

Columns = Mapping[str, Any]
"""Added columns of a row, by name; empty for a row without a prediction."""


@dataclass(frozen=True)
class Row:
    """A row of a file: its location, for messages, and its question, or an error with its fault."""

    place: str
    question: Example | Exception


@dataclass(frozen=True)
class RowFile:
    """A file of rows for a model to answer.

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
        """Questions by id, each once, in the order of their first rows."""
        return {row.question.id: row.question for row in self.rows if isinstance(row.question, Example)}

    @property
    def faults(self) -> dict[str, list[str]]:
        """Locations of bad rows, by fault."""
        faults = defaultdict(list)
        for row in self.rows:
            if isinstance(row.question, Exception):
                faults[str(row.question)].append(row.place)
        return faults

    def refuse_bad_rows(self, bad_rows: BadRows) -> None:
        """Refuse bad rows, unless they are to be skipped and there are others; refuse a file without rows."""
        if self.faults and (bad_rows == "stop" or not self.questions):
            fix = "correct these rows or the task, or use --bad-rows skip, which leaves them without a prediction"
            raise UsageError(f"{by_row(self.faults)}\n{fix}")
        if not self.rows:
            raise UsageError(f"{self.path}: contains no rows")

    def write(self, columns: Sequence[Columns], out: Path) -> None:
        """Write the rows unchanged, each with its ``columns``, into a file of the same format.

        Raises:
            MosloraError: the file has changed since it was read.
        """
        with replacing(out) as new:
            if sha256(self.path) != self.sha256:
                raise MosloraError(f"{self.path}: changed during the command; repeat it to answer the new rows")
            WRITERS[self.path.suffix.lower()](self.path, columns, new)


def read_unanswered(path: Path, task: Task) -> RowFile:
    """Read the rows of a file as questions of ``task``. A question's id is a hash of its content, so equal ones share
    it.

    Raises:
        UsageError: the file cannot be read, or has another ending than those of `WRITERS`.
    """
    if path.suffix.lower() not in WRITERS:
        endings = ", ".join(WRITERS)
        raise UsageError(f"{path}: must be a file of rows, whose name ends in {endings}; save a workbook as CSV UTF-8")
    if not path.is_file():
        fix = did_you_mean(near_folders(path), otherwise="name a file with a row per question")
        raise UsageError(f"{path}: no such file; {fix}")

    def read(row: dict[str, Any], number: int) -> Example:
        reserved = [name for name in ADDED if name in row]
        if reserved:
            raise ValueError(f"{', '.join(reserved)}: predict writes a column of this name; rename it")
        question = task.unanswered(row, "")
        return replace(question, id=f"{task.name}/{data_hash([question])[:16]}")

    rows = [Row(f"{path}{location}", question) for location, question in read_each(located_rows(path), read)]
    return RowFile(path, sha256(path), tuple(rows))


def _write_lines(path: Path, columns: Sequence[Columns], new: Path) -> None:
    """Write JSONL. A row without added columns stays as it is."""
    rows = [line.rstrip() for line in text_of(path).split("\n") if line.strip()]
    lines = []
    for row, added in zip(rows, columns, strict=True):
        text = json.dumps(added, ensure_ascii=False)
        lines.append(f"{row[:-1].rstrip()}, {text[1:]}\n" if added else f"{row}\n")
    new.write_text("".join(lines), encoding="utf-8", newline="")


def _write_cells(path: Path, columns: Sequence[Columns], new: Path) -> None:
    """Write CSV, separated as the file. Probabilities of several options are JSON."""
    names = _names(columns)
    text = text_of(path)
    delimiter = delimiter_of(text, path=path)
    header, *rows = [cells for cells in csv.reader(StringIO(text, newline=""), delimiter=delimiter) if cells]
    has_mark = path.read_bytes().startswith(codecs.BOM_UTF8)  # without it, Excel does not read UTF-8
    with new.open("w", encoding="utf-8-sig" if has_mark else "utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        writer.writerow([*header, *names])
        for row, added in zip(rows, columns, strict=True):
            missing = [""] * (len(header) - len(row))
            writer.writerow([*row, *missing, *(_cell(added.get(name)) for name in names)])


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value


def _write_parquet(path: Path, columns: Sequence[Columns], new: Path) -> None:
    """Write Parquet. Probabilities of several options are a map."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"probability": pa.float64(), "probabilities": pa.map_(pa.string(), pa.float64())}
    with pq.ParquetFile(path) as file:
        table = file.read()
    for name in _names(columns):
        values = [added.get(name) for added in columns]
        cells = [list(value.items()) if isinstance(value, dict) else value for value in values]
        table = table.append_column(name, pa.array(cells, types.get(name, pa.string())))
    pq.write_table(table, new)


def _names(columns: Sequence[Columns]) -> list[str]:
    """List the names of the added columns of all rows."""
    return [name for name in ADDED if any(name in added for added in columns)]


WRITERS: Mapping[str, Callable[[Path, Sequence[Columns], Path], None]] = {
    ".jsonl": _write_lines,
    ".csv": _write_cells,
    ".tsv": _write_cells,
    ".parquet": _write_parquet,
}
"""Writers by the ending of a file's name."""
