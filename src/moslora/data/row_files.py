"""Rows of a local file, each with its place for messages: JSON, JSONL, CSV, Parquet, or plain text in paragraphs.

What a row holds is what its file holds. JSON and Parquet have types, so a number is a number there. A CSV file has
none: every cell is a text, and ``007`` stays ``007``. An empty cell is an empty text.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

from moslora.choices import BadRows
from moslora.console import note_once
from moslora.errors import UsageError, by_row, counted, first_line
from moslora.tasks import Example

Located = tuple[str, Any]
"""A row's location for messages, such as ``:7`` for a line or ``: row 7``; and the row, or the `ValueError` that says
why it cannot be read."""


def read_rows(
    path: Path, read: Callable[[dict[str, Any], int], Example], *, plain: bool = False, bad_rows: BadRows = "stop"
) -> list[Example]:
    """The examples that ``read`` makes of a file's rows.

    The name's ending says how the file is read: ``.jsonl`` has an object per line, ``.csv`` a header and a row per
    line, ``.parquet`` a table, and any other file one JSON array of objects.

    Args:
        read: gets a row and its number, from 0; a `ValueError` says what is wrong with the row.
        plain: the file is text without rows; each paragraph, between empty lines, is a row with a ``text``.
        bad_rows: "skip" leaves out rows with a fault, and says how many and where.

    Raises:
        UsageError: it cannot be read; or as of `examples_of`, with the line of a row in JSONL.
    """
    return examples_of(located_rows(path, plain=plain), read, where=str(path), bad_rows=bad_rows)


def located_rows(path: Path, *, plain: bool = False) -> Iterator[Located]:
    """The rows of a file, each with its place (`read_rows`)."""
    reader = _paragraphs if plain else _READERS.get(path.suffix.lower(), _array)
    return reader(path)


def examples_of(
    rows: Iterable[Located],
    read: Callable[[dict[str, Any], int], Example],
    *,
    where: str,
    bad_rows: BadRows = "stop",
) -> list[Example]:
    """The examples that ``read`` makes of rows, which are from ``where``; ``bad_rows`` as in `read_rows`.

    Raises:
        UsageError: the faults of rows, each once, with the place of the first; or there are no rows.
    """
    examples: list[Example] = []
    faults: dict[str, list[str]] = {}
    for location, example in read_each(rows, read):
        if isinstance(example, Example):
            examples.append(example)
        else:
            faults.setdefault(str(example), []).append(f"{where}{location}")
    if faults and not (bad_rows == "skip" and examples):
        raise UsageError(by_row(faults))
    if faults:
        count = sum(map(len, faults.values()))
        note_once(f"{counted(count, 'bad row')} skipped: {'; '.join(by_row(faults).splitlines())}")
    if not examples:
        raise UsageError(f"{where}: contains no rows")
    return examples


def read_each(
    rows: Iterable[Located], read: Callable[[dict[str, Any], int], Example]
) -> Iterator[tuple[str, Example | Exception]]:
    """The place of each row, and the example that ``read`` makes of it, or the error that says what is wrong."""
    for number, (location, row) in enumerate(rows):
        try:
            if isinstance(row, ValueError):
                raise row
            if not isinstance(row, dict):
                raise ValueError(f"expected an object with the columns of a row; found {type(row).__name__}")
            example: Example | Exception = read(row, number)
        except (ValueError, RecursionError) as fault:
            example = fault
        yield location, example


def numbered(rows: Iterable[Any]) -> Iterator[Located]:
    """Rows whose location is their number, from 1."""
    for number, row in enumerate(rows, start=1):
        yield f": row {number}", row


def has_rows(path: Path) -> bool:
    """Whether the file's ending is that of rows with columns, and not of plain text."""
    return path.suffix.lower() in (*_READERS, ".json")


def text_of(path: Path) -> str:
    """The text with its line ends as they are."""
    try:
        return path.read_bytes().decode("utf-8-sig")  # some editors write a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as UTF-8 text ({error})") from error


def _paragraphs(path: Path) -> Iterator[Located]:
    text = text_of(path).replace("\r\n", "\n").strip()
    return numbered({"text": paragraph} for paragraph in re.split(r"\n\s*\n", text) if paragraph)


def _array(path: Path) -> Iterator[Located]:
    text = text_of(path)
    try:
        rows = json.loads(text)
        if not isinstance(rows, list):
            raise ValueError("not an array")
    except (ValueError, RecursionError) as error:
        kinds = "a .json file is one array of rows, a .jsonl file has one row per line; .csv and .parquet work, too"
        raise UsageError(f"{path}: malformed JSON ({error}); {kinds}") from None
    return numbered(rows)


def _lines(path: Path) -> Iterator[Located]:
    # splitlines() also breaks at characters that JSON strings may contain unescaped.
    for number, line in enumerate(text_of(path).split("\n"), start=1):
        if line.strip():
            row: Any
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                what = str(error).partition(":")[0]  # without its place in the line
                row = ValueError(f"malformed JSON ({what})")
            yield f":{number}", row


def _cells(path: Path) -> Iterator[Located]:
    """Rows by Python's reader, which guesses no types. A column without a name, such as pandas' index, is left out."""
    csv.field_size_limit(2**31 - 1)  # Python's own is 131,072 characters; it is the whole process's
    lines = csv.reader(StringIO(text_of(path), newline=""), strict=True)
    read = []
    end = 0  # the last line of the row before
    try:
        for cells in lines:
            read.append(cells)
            end = lines.line_num
    except csv.Error as error:
        fix = "a quote in the row that begins here is not closed, or not doubled within a quoted text"
        raise UsageError(f"{path}:{end + 1}: malformed CSV ({error}); {fix}") from None
    header, *rows = [cells for cells in read if cells] or [[]]
    names = [name.strip() for name in header]
    named = [name for name in names if name]
    if len({*named}) < len(named):
        raise UsageError(f"{path}: several columns have one name, of {', '.join(named)}; rename them in the first line")
    found: list[Any] = []
    for cells in rows:
        found.append({name: cell for name, cell in zip(names, cells, strict=False) if name})
        if len(cells) != len(names):
            found[-1] = ValueError(
                f"has {len(cells)} cells, but the first line names {len(names)} columns; a text with a comma needs"
                ' quotes: "a, b"'
            )
    return numbered(found)


def _parquet(path: Path) -> Iterator[Located]:
    """Rows in batches. By pyarrow, as ``datasets``, which uses the same reader, would leave a lock in the cache."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield from numbered(row for batch in file.iter_batches() for row in batch.to_pylist())
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{path}: cannot be read as Parquet ({first_line(error)})") from None


_READERS: dict[str, Callable[[Path], Iterator[Located]]] = {".jsonl": _lines, ".csv": _cells, ".parquet": _parquet}
"""Ending -> reader; files with other endings are JSON."""
