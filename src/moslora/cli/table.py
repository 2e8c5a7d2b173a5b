"""Tables in the terminal."""

import math
import re
from collections.abc import Iterable


def print_described(names: list[tuple[str, str]]) -> None:
    """Prints names and what they are, a line each."""
    width = max(len(name) for name, _ in names)
    for name, purpose in names:
        print(f"{name:{width}}  {purpose}")


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
            console.width = 160  # in a file, no column is cut
        wide = sum(max(map(len, column)) + 1 for column in zip(*rows, strict=True)) > console.width
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
