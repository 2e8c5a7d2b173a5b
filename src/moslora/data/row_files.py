"""Rows of local files, with their locations for messages: JSON, JSONL, CSV, Parquet, or paragraphs of plain text.

Values keep the types of the file. JSON and Parquet have numbers; in a CSV file every cell is a text, so ``007`` stays
``007``, and an empty cell is an empty text. Commas, semicolons or tabs separate its cells.
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
"""A row's location for messages, such as ``:7`` (a line) or ``: row 7``, and the row, or a `ValueError` with its
fault."""

_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
"""Characters that separate the cells of a CSV file, by preference, with their names."""


def read_rows(
    path: Path, read: Callable[[dict[str, Any], int], Example], *, plain: bool = False, bad_rows: BadRows = "stop"
) -> list[Example]:
    """Read a file's rows as examples.

    The ending of the name decides the format: ``.jsonl`` has an object per line, ``.csv`` or ``.tsv`` a header and
    rows, ``.parquet`` a table, and any other file one JSON array of objects.

    Args:
        path: the file.
        read: makes an example of a row and its number, from 0, or raises `ValueError` with the row's fault.
        plain: the file is plain text; each paragraph, between empty lines, is a row with a ``text``.
        bad_rows: "skip" skips rows with a fault, and notes how many and where.

    Raises:
        UsageError: the file cannot be read, or a row has a fault (`examples_of`).
    """
    return examples_of(located_rows(path, plain=plain), read, where=str(path), bad_rows=bad_rows)


def located_rows(path: Path, *, plain: bool = False) -> Iterator[Located]:
    """Read the rows of a file with their locations; arguments as in `read_rows`."""
    reader = _paragraphs if plain else _READERS.get(path.suffix.lower(), _array)
    return reader(path)


def examples_of(
    rows: Iterable[Located],
    read: Callable[[dict[str, Any], int], Example],
    *,
    where: str,
    bad_rows: BadRows = "stop",
) -> list[Example]:
    """Make examples of rows.

    Args:
        rows: with their locations.
        read: as in `read_rows`.
        where: the file or page of the rows, for messages.
        bad_rows: as in `read_rows`.

    Raises:
        UsageError: rows have faults, each named once with the first location; or there are no rows.
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
    """Make an example of each row, or an error with its fault; each after the row's location."""
    for number, (location, row) in enumerate(rows):
        try:
            if isinstance(row, ValueError):
                raise row
            if not isinstance(row, dict):
                raise ValueError(f"must be an object with the columns of a row, not {type(row).__name__}")
            example: Example | Exception = read(row, number)
        except (ValueError, RecursionError) as fault:
            example = fault
        yield location, example


def numbered(rows: Iterable[Any]) -> Iterator[Located]:
    """Locate rows by their number, from 1."""
    for number, row in enumerate(rows, start=1):
        yield f": row {number}", row


def has_rows(path: Path) -> bool:
    """Return whether the file's ending says that it has rows with columns, and not plain text."""
    return path.suffix.lower() in (*_READERS, ".json")


def text_of(path: Path) -> str:
    """Read a file as UTF-8 and keep its line ends."""
    try:
        return path.read_bytes().decode("utf-8-sig")  # some editors write a byte order mark
    except UnicodeDecodeError as error:
        fix = "save it as UTF-8, and a workbook as CSV UTF-8"
        raise UsageError(f"{path}: cannot be read as UTF-8 text ({error}); {fix}") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error})") from error


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
        kinds = "a .json file must be one array of rows, a .jsonl file one row per line; .csv and .parquet also work"
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
                fault = str(error).partition(":")[0]  # without the position in the line
                row = ValueError(f"malformed JSON ({fault})")
            yield f":{number}", row


def _cells(path: Path) -> Iterator[Located]:
    """Read CSV without guessing types. A column without a name, such as pandas' index, is skipped."""
    csv.field_size_limit(2**31 - 1)  # for the whole process; Python's default is 131,072 characters
    text = text_of(path)
    delimiter = delimiter_of(text, path=path)
    separator = _DELIMITERS[delimiter]
    if delimiter != ",":
        note_once(f"{path}: its cells are separated by {separator}s")
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
    lines = []
    end = 0  # last line of the previous row
    try:
        for cells in reader:
            lines.append(cells)
            end = reader.line_num
    except csv.Error as error:
        fix = "in the row that begins here, close every quote, and double quotes inside a quoted text"
        raise UsageError(f"{path}:{end + 1}: malformed CSV ({error}); {fix}") from None
    header, *rows = [cells for cells in lines if cells] or [[]]
    names = [name.strip() for name in header]
    named = [name for name in names if name]
    if len({*named}) < len(named):
        raise UsageError(f"{path}: two columns have the same name; rename one in the first line: {', '.join(named)}")
    checked_rows: list[Any] = []
    for cells in rows:
        checked_rows.append({name: cell for name, cell in zip(names, cells, strict=False) if name})
        if len(cells) != len(names):
            checked_rows[-1] = ValueError(
                f"has {len(cells)} cells, but the first line names {len(names)} columns; a text with a {separator}"
                f' needs quotes: "a{delimiter} b"'
            )
    return numbered(checked_rows)


def delimiter_of(text: str, *, path: Path) -> str:
    """Find the character that separates the cells of a CSV file.

    Of the characters that the first line has outside quotes, it is the one that cuts the most rows into as many cells
    as the first line; a comma if the first line has none.

    Raises:
        UsageError: two characters cut equally many rows so.
    """
    first, *rows = [line for line in re.split(r"[\r\n]+", re.sub('"[^"]*"', "", text)) if line.strip()] or [""]
    fitting = {
        delimiter: sum(row.count(delimiter) == first.count(delimiter) for row in rows)
        for delimiter in _DELIMITERS
        if delimiter in first
    }
    most = max(fitting.values(), default=0)
    best = [delimiter for delimiter, count in fitting.items() if count == most] or [","]
    if len(best) > 1:
        readings = [f"with {_DELIMITERS[delimiter]}s {' | '.join(first.split(delimiter))}" for delimiter in best]
        raise UsageError(
            f"{path}: the columns of the first line are ambiguous: {', or '.join(readings)}; put quotes around the"
            " names and cells that contain one of them"
        )
    return best[0]


def _parquet(path: Path) -> Iterator[Located]:
    """Read Parquet in batches, by pyarrow, because ``datasets`` would leave a lock file in the cache."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield from numbered(row for batch in file.iter_batches() for row in batch.to_pylist())
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{path}: cannot be read as Parquet ({first_line(error)})") from None


_READERS: dict[str, Callable[[Path], Iterator[Located]]] = {
    ".jsonl": _lines,
    ".csv": _cells,
    ".tsv": _cells,
    ".parquet": _parquet,
}
"""Readers by the ending of a file's name; files with other endings are JSON."""
