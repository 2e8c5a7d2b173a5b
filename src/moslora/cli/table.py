"""Tables in the terminal."""

import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence

PIPED = 160
"""Columns of a table in a file or a pipe, or more where a row needs them."""


def print_described(names: list[tuple[str, str]]) -> None:
    """Prints names and what they are, a line each; on a terminal it is continued below its beginning."""
    width = max(len(name) for name, _ in names)
    for name, purpose in names:
        print(_hanging(f"{name:{width}}  ", purpose))


def print_entries(rows: list[list[str]]) -> None:
    """Prints ``rows``, header first, as a table; on a terminal that is too narrow for a line each, as paragraphs."""
    needed = sum(_whole_widths(rows)) + _gaps(rows)
    if sys.stdout.isatty() and needed > shutil.get_terminal_size().columns:
        _print_paragraphs(rows)
    else:
        print_table(rows)


def print_table(rows: list[list[str]], *, above: Iterable[str] = (), below: Iterable[str] = ()) -> None:
    """Prints ``rows``, header first, all columns but the first right-aligned, between lines ``above`` and ``below``.

    On a terminal the macro average is bold. Where the columns do not fit side by side, each row is a paragraph.
    """
    for line in above:
        print(line)
    if rows:
        _print_rows(rows)
    for line in below:
        print(line)


def _print_rows(rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, emoji=False)  # a run's name may have brackets
    if console.is_terminal:
        room = console.width - _gaps(rows)
    else:
        room = sum(_whole_widths(rows))
        console.width = max(PIPED, room + _gaps(rows))  # so that a row is a line
    widths = _fitting(rows, room)
    if not widths:
        _print_paragraphs(rows)
        return
    table = Table(box=None, pad_edge=False)
    for title, width in zip(rows[0], widths, strict=True):
        table.add_column(title, width=width, justify="right", overflow="fold")
    table.columns[0].justify = "left"
    for row in rows[1:]:
        style = "bold" if row[0] == "macro average" else None
        table.add_row(*row, style=style)
    console.print(table)


def _fitting(rows: Sequence[Sequence[str]], room: int) -> list[int]:
    """The width of each column, together at most ``room``; empty if they do not fit.

    The first column, of names, stays whole. Where the others do not fit, their titles are in several lines.
    """
    whole = _whole_widths(rows)
    folded = whole[:1]
    for title, *cells in list(zip(*rows, strict=True))[1:]:
        folded.append(_longest([*title.split(), *cells]))
    for widths in (whole, folded):
        if sum(widths) <= room:
            return widths
    return []


def _print_paragraphs(rows: list[list[str]]) -> None:
    """Prints each row as a paragraph: its name, and below it a line for every other cell that is not empty, and for
    every part of one that ``; `` separates."""
    titles = rows[0][1:]
    widest = _longest(titles)
    for name, *cells in rows[1:]:
        print(name)
        for title, cell in zip(titles, cells, strict=True):
            if not cell:
                continue
            label = title
            for part in cell.split("; "):
                print(_hanging(f"  {label:{widest}}  ", part))
                label = ""  # the title stands before the first part alone


def _hanging(beginning: str, text: str) -> str:
    """``text`` after its ``beginning``; on a terminal it is wrapped, and continued below where it began."""
    room = shutil.get_terminal_size().columns - len(beginning)
    if not sys.stdout.isatty() or room < 20:
        return beginning + text
    lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)
    indent = " " * len(beginning)
    return beginning + f"\n{indent}".join(lines)


def _whole_widths(rows: Sequence[Sequence[str]]) -> list[int]:
    """The width of each column with every cell on one line."""
    return [_longest(cells) for cells in zip(*rows, strict=True)]


def _longest(texts: Iterable[str]) -> int:
    """Characters of the longest text; 0 without any."""
    return max((len(text) for text in texts), default=0)


def _gaps(rows: Sequence[Sequence[str]]) -> int:
    """The blanks between the columns of a line."""
    return 2 * (len(rows[0]) - 1)
