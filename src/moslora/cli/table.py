"""Tables in the terminal."""

import math
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

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


def print_table(rows: list[list[str]], *, above: Iterable[str] = (), below: Iterable[str] = (), best: str = "") -> None:
    """Prints ``rows``, header first, all columns but the first right-aligned, between lines ``above`` and ``below``.

    On a terminal the macro average is bold, and so is the row with the largest number in the column ``best``. Where the
    longest words of all columns do not fit side by side, each row is a paragraph.
    """
    for line in above:
        print(line)
    if rows:
        _print_rows(rows, best=best)
    for line in below:
        print(line)


def _print_rows(rows: list[list[str]], *, best: str) -> None:
    from rich.console import Console

    console = Console(markup=False, emoji=False)  # a run's name may have brackets
    if console.is_terminal:
        room = console.width - _gaps(rows)
    else:
        room = sum(_whole_widths(rows))
        console.width = max(PIPED, room + _gaps(rows))  # so that a row is a line
    widths = _fitting(rows, room)
    if widths:
        _print_grid(console, rows, widths, best=best)
    else:
        _print_paragraphs(rows)


def _fitting(rows: Sequence[Sequence[str]], room: int) -> list[int]:
    """The width of each column, together at most ``room``; empty if not even the longest words fit.

    The first column, of names, stays whole. The others are narrowed where their cells or titles have several words.
    """
    whole = _whole_widths(rows)
    if sum(whole) <= room:
        return whole
    widths = whole[:1]
    least = whole[:1]
    for title, *cells in _columns(rows)[1:]:
        longest_word_of_title = _longest(title.split())
        widths.append(max(_longest(cells), longest_word_of_title))
        least.append(max(_longest_word(cells), longest_word_of_title))
    while sum(widths) > room:
        slack = [width - narrow for width, narrow in zip(widths, least, strict=True)]
        if not any(slack):
            return []
        loosest = slack.index(max(slack))
        widths[loosest] -= 1
    return widths


def _print_grid(console: "Console", rows: list[list[str]], widths: Sequence[int], *, best: str) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title, width in zip(rows[0], widths, strict=True):
        table.add_column(title, width=width, justify="right", overflow="fold")
    table.columns[0].justify = "left"
    numbers = _numbers(rows, best)
    for row, number in zip(rows[1:], numbers, strict=True):
        is_best = number == max(numbers) > -math.inf
        style = None
        if is_best or row[0] == "macro average":
            style = "bold"
        table.add_row(*row, style=style)
    console.print(table)


def _numbers(rows: list[list[str]], column: str) -> list[float]:
    """The first number of each row in this column; −∞ where there is none."""
    titles = rows[0]
    numbers = []
    for row in rows[1:]:
        found = None
        if column in titles:
            found = re.search(r"-?\d+\.\d+", row[titles.index(column)])
        if found:
            numbers.append(float(found[0]))
        else:
            numbers.append(-math.inf)
    return numbers


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


def _columns(rows: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    return list(zip(*rows, strict=True))


def _whole_widths(rows: Sequence[Sequence[str]]) -> list[int]:
    """The width of each column with every cell on one line."""
    return [_longest(cells) for cells in _columns(rows)]


def _longest(texts: Iterable[str]) -> int:
    """Characters of the longest text; 0 without any."""
    return max((len(text) for text in texts), default=0)


def _longest_word(texts: Iterable[str]) -> int:
    """Characters of the longest word in these texts."""
    return max((_longest(text.split()) for text in texts), default=0)


def _gaps(rows: Sequence[Sequence[str]]) -> int:
    """The blanks between the columns of a line."""
    return 2 * (len(rows[0]) - 1)
