"""Rows of a local file, each with its place for messages: JSON, JSONL, CSV, Parquet, or plain text in paragraphs.

What a row holds is what its file holds. JSON and Parquet have types, so a number is a number there. A CSV file has
none: every cell is a text, and ``007`` stays ``007``. An empty cell is an empty text.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moslora.errors import UsageError, capped, first_line
from moslora.tasks import Example

Placed = tuple[str, Any]
"""Where a row is, such as ``:7`` for a line or ``: row 7``; and the row, or the `ValueError` that says why it cannot be
read."""

_SEPARATORS = (";", "\t", "|")
"""What some programs write between the cells of a CSV file in place of a comma."""


def read_rows(path: Path, read: Callable[[dict[str, Any], int], Example], *, plain: bool = False) -> list[Example]:
    """The rows of a file by ``read``, which gets a row and its number, from 0.

    The name's ending says how the file is read: ``.jsonl`` has an object a line, ``.csv`` a header and a row a line,
    ``.parquet`` a table, any other one JSON array of objects. One that is ``plain`` text has a ``text`` in each
    paragraph, between empty lines.

    Raises:
        UsageError: the faults, by line in JSONL and CSV and by the row's number, from 1, in the others; the same fault
            once.
    """
    examples: list[Example] = []
    faults: dict[str, list[str]] = {}
    reader = _paragraphs if plain else _READERS.get(path.suffix.lower(), _array)
    for number, (place, row) in enumerate(reader(path)):
        try:
            examples.append(read(_columns(row), number))
        except (ValueError, RecursionError) as fault:
            faults.setdefault(str(fault), []).append(place)
    if faults:
        raise UsageError(capped([_told(path, fault, places) for fault, places in faults.items()]))
    if not examples:
        raise UsageError(f"{path}: contains no rows")
    return examples


def has_rows(path: Path) -> bool:
    """Whether the file's ending is that of rows with columns, and not of plain text."""
    return path.suffix.lower() in (*_READERS, ".json")


def _columns(row: Any) -> dict[str, Any]:
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, dict):
        raise ValueError(f"expected an object with the columns of a row; found {type(row).__name__}")
    return row


def _told(path: Path, fault: str, places: list[str]) -> str:
    first, *more = places
    line = f"{path}{first}: {fault}"
    return f"{line} (and {len(more)} more rows)" if more else line


def _text_of(path: Path) -> str:
    with _as_utf8(path):
        return path.read_text(encoding="utf-8-sig")  # some editors write a byte order mark


@contextmanager
def _as_utf8(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as UTF-8 text ({error})") from error


def _paragraphs(path: Path) -> Iterator[Placed]:
    text = _text_of(path).strip()
    paragraphs = re.split(r"\n\s*\n", text) if text else []
    for number, paragraph in enumerate(paragraphs, start=1):
        yield f": paragraph {number}", {"text": paragraph}


def _array(path: Path) -> Iterator[Placed]:
    text = _text_of(path)
    try:
        rows = json.loads(text)
        if not isinstance(rows, list):
            raise ValueError("not an array")
    except (ValueError, RecursionError) as error:
        kinds = "a .json file is one array of rows, a .jsonl file has one row a line; .csv and .parquet are read, too"
        raise UsageError(f"{path}: malformed JSON ({error}); {kinds}") from None
    for number, row in enumerate(rows, start=1):
        yield f": row {number}", row


def _lines(path: Path) -> Iterator[Placed]:
    # splitlines() also breaks at characters that JSON strings may contain unescaped.
    for number, line in enumerate(_text_of(path).split("\n"), start=1):
        if line.strip():
            yield f":{number}", _parsed(line)


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return ValueError(f"malformed JSON ({error.msg})")
    except (ValueError, RecursionError) as error:
        return ValueError(str(error))


def _cells(path: Path) -> Iterator[Placed]:
    """By Python's reader, which guesses no types. The place is the line where a row begins."""
    with _as_utf8(path), path.open(encoding="utf-8-sig", newline="") as text, _cells_of_any_length():
        lines = csv.reader(text, strict=True)
        header: list[str] = []
        begins = 1
        try:
            for cells in lines:
                place = f":{begins}"
                begins = lines.line_num + 1
                if not cells:  # an empty line
                    continue
                if header:
                    yield place, _row(header, cells)
                else:
                    header = _header(path, cells)
        except csv.Error as error:  # after which it is not known where a row begins
            yield f":{begins}", ValueError(f"malformed CSV ({error}); quotes are doubled in a quoted text")


@contextmanager
def _cells_of_any_length() -> Iterator[None]:
    """Python's limit of 131,072 characters is for the whole process."""
    usual = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(usual)


def _header(path: Path, cells: list[str]) -> list[str]:
    names = [name.strip() for name in cells]
    if len(names) == 1 and (found := [mark for mark in _SEPARATORS if mark in names[0]]):
        raise UsageError(f"{path}: its cells are separated by {found[0]!r}; save it with commas")
    if twice := [name for name in dict.fromkeys(names) if name and names.count(name) > 1]:
        raise UsageError(f"{path}: several columns are called {', '.join(twice)}; rename them in the first line")
    return names


def _row(header: list[str], cells: list[str]) -> Any:
    """A column without a name, as of pandas' index, is left out."""
    if len(cells) != len(header):
        fix = 'a text with a comma needs quotes: "a, b"'
        return ValueError(f"has {len(cells)} cells, and the first line names {len(header)} columns; {fix}")
    return {name: cell for name, cell in zip(header, cells, strict=True) if name}


def _parquet(path: Path) -> Iterator[Placed]:
    """Some rows at a time, by the reader that ``datasets`` uses, too, after it has left a lock in the cache."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f": row {number}", row
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{path}: cannot be read as Parquet ({first_line(error)})") from None


_READERS: dict[str, Callable[[Path], Iterator[Placed]]] = {".jsonl": _lines, ".csv": _cells, ".parquet": _parquet}
"""Ending -> reader; the others are JSON."""
