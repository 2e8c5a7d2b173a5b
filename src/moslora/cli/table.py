"""Tables in the terminal."""

import math
import re
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
    """Prints ``rows``, header first, as a table; on a terminal that is too narrow for it, each row as a paragraph of
    its own, with a line for every column, and one for every part of a cell that `; ` separates."""
    if not sys.stdout.isatty() or _width_of(rows) <= shutil.get_terminal_size().columns:
        print_table(rows)
        return
    (_, *titles), *entries = rows
    widest = max(map(len, titles))
    for name, *cells in entries:
        print(name)
        for title, cell in zip(titles, cells, strict=True):
            for number, part in enumerate(cell.split("; ")):
                label = "" if number else title
                print(_hanging(f"  {label:{widest}}  ", part))


def _hanging(beginning: str, text: str) -> str:
    """``text`` after its ``beginning``; on a terminal it is wrapped, and continued below where it began."""
    room = shutil.get_terminal_size().columns - len(beginning)
    if not sys.stdout.isatty() or room < 20:
        return beginning + text
    lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)
    return beginning + f"\n{' ' * len(beginning)}".join(lines)


def _width_of(rows: Sequence[Sequence[str]]) -> int:
    """Columns that a table needs for every row to be one line."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return sum(widths) + 2 * (len(widths) - 1)


def print_table(rows: list[list[str]], *, above: Iterable[str] = (), below: Iterable[str] = (), best: str = "") -> None:
    """Prints ``rows``, header first, all columns but the first right-aligned, between lines ``above`` and ``below``.
    On a terminal the macro average is bold, and the row with the largest number in the column ``best``."""
    from rich.console import Console
    from rich.table import Table

    for line in above:
        print(line)
    if rows:
        console = Console(markup=False, emoji=False)  # a run's name may have brackets
        if not console.is_terminal:
            console.width = max(PIPED, _width_of(rows))  # so that a line is a row
        wide = _width_of(rows) > console.width
        table = Table(*(title.replace(" ", "\n" if wide else " ") for title in rows[0]), box=None, pad_edge=False)
        name, *others = table.columns
        name.no_wrap, name.min_width = True, min(max(len(row[0]) for row in rows[1:] or rows), console.width // 2)
        for column in others:
            column.justify, column.overflow = "right", "fold"
        cells = [row[rows[0].index(best)] if best in rows[0] else "" for row in rows[1:]]
        numbers = [float(found[0]) if (found := re.search(r"-?\d+\.\d+", cell)) else -math.inf for cell in cells]
        for row, number in zip(rows[1:], numbers, strict=True):
            strong = row[0] == "macro average" or number == max(numbers) > -math.inf
            table.add_row(*row, style="bold" if strong else None)
        console.print(table)
    for line in below:
        print(line)
