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
    if sys.stdout.isatty() and sum(map(_longest, _columns(rows))) + _gaps(rows) > shutil.get_terminal_size().columns:
        _print_paragraphs(rows)
    else:
        print_table(rows)


def _print_paragraphs(rows: list[list[str]]) -> None:
    """Prints each row as a paragraph: its name, and below it a line for every other cell that is not empty, and for
    every part of one that ``; `` separates."""
    (_, *titles), *entries = rows
    widest = _longest(titles)
    for name, *cells in entries:
        print(name)
        for title, cell in zip(titles, cells, strict=True):
            for number, part in enumerate(cell.split("; ") if cell else ()):
                label = "" if number else title
                print(_hanging(f"  {label:{widest}}  ", part))


def _hanging(beginning: str, text: str) -> str:
    """``text`` after its ``beginning``; on a terminal it is wrapped, and continued below where it began."""
    room = shutil.get_terminal_size().columns - len(beginning)
    if not sys.stdout.isatty() or room < 20:
        return beginning + text
    lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)
    return beginning + f"\n{' ' * len(beginning)}".join(lines)


def _columns(rows: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    return list(zip(*rows, strict=True))


def _longest(texts: Iterable[str]) -> int:
    return max(map(len, texts))


def _gaps(rows: Sequence[Sequence[str]]) -> int:
    """The blanks between the columns of a line."""
    return 2 * (len(rows[0]) - 1)


def _fitting(rows: Sequence[Sequence[str]], room: int) -> list[int]:
    """The width of each column in ``room``: what it needs, less where its cells or titles are of several words. The
    first, of names, stays whole. Empty if not even the longest words fit."""
    names, *others = _columns(rows)
    needed = [_longest(names)] + [max(_longest(cells), _longest(title.split() or [""])) for title, *cells in others]
    whole = [_longest(names), *map(_longest, others)]
    least = [_longest(names)] + [
        _longest([word for cell in column for word in cell.split()] or [""]) for column in others
    ]
    widths = whole if sum(whole) <= room else needed
    while sum(widths) > room:
        slack = [width - narrow for width, narrow in zip(widths, least, strict=True)]
        if not any(slack):
            return []
        widths[slack.index(max(slack))] -= 1
    return widths


def print_table(rows: list[list[str]], *, above: Iterable[str] = (), below: Iterable[str] = (), best: str = "") -> None:
    """Prints ``rows``, header first, all columns but the first right-aligned, between lines ``above`` and ``below``.
    On a terminal the macro average is bold, and the row with the largest number in the column ``best``; on one too
    narrow for the longest words of all columns, each row is a paragraph."""
    from rich.console import Console

    for line in above:
        print(line)
    if rows:
        console = Console(markup=False, emoji=False)  # a run's name may have brackets
        room = sum(map(_longest, _columns(rows)))
        if console.is_terminal:
            room = console.width - _gaps(rows)
        else:
            console.width = max(PIPED, room + _gaps(rows))  # so that a row is a line
        if widths := _fitting(rows, room):
            _print_grid(console, rows, widths, best=best)
        else:
            _print_paragraphs(rows)
    for line in below:
        print(line)


def _print_grid(console: "Console", rows: list[list[str]], widths: Sequence[int], *, best: str) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title, width in zip(rows[0], widths, strict=True):
        table.add_column(title, width=width, justify="right" if table.columns else "left", overflow="fold")
    cells = [row[rows[0].index(best)] if best in rows[0] else "" for row in rows[1:]]
    numbers = [float(found[0]) if (found := re.search(r"-?\d+\.\d+", cell)) else -math.inf for cell in cells]
    for row, number in zip(rows[1:], numbers, strict=True):
        strong = row[0] == "macro average" or number == max(numbers) > -math.inf
        table.add_row(*row, style="bold" if strong else None)
    console.print(table)
