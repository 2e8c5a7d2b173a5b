"""Tables in the terminal."""

import math
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from itertools import zip_longest

from moslora.console import Bold


def print_described(names: list[tuple[str, str]]) -> None:
    """Prints names and what they are, a line each; on a terminal it is continued below its beginning."""
    width = max(len(name) for name, _ in names)
    for name, purpose in names:
        print(_hanging(f"{name:{width}}  ", purpose))


def print_table(rows: list[list[str]], *, above: Iterable[str] = (), below: Iterable[str] = ()) -> None:
    """Prints ``rows``, header first, all columns but the first right-aligned, between lines ``above`` and ``below``.

    On a terminal a row with a `Bold` name is bold. Where the columns do not fit side by side, also with their titles in
    several lines, each row is a paragraph.
    """
    for line in (*above, *_lines(rows), *below):
        print(line)


def _lines(rows: list[list[str]]) -> Iterable[str]:
    if not rows:
        return []
    names, *columns = zip(*rows, strict=True)
    widths = [_longest(names)]
    folded = [_longest(names)]
    for title, *cells in columns:
        widths.append(_longest([title, *cells]))
        folded.append(_longest([*title.split(), *cells]))
    gaps = 2 * len(columns)
    room = _room()
    if sum(widths) + gaps > room:
        widths = folded
    if sum(widths) + gaps > room:
        return _paragraphs(rows)
    titles = [textwrap.wrap(title, max(1, width)) for title, width in zip(rows[0], widths, strict=True)]
    lines = []
    for name, *cells in (*zip_longest(*titles, fillvalue=""), *rows[1:]):
        justified = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        line = "  ".join([name.ljust(widths[0]), *justified])
        if isinstance(name, Bold) and sys.stdout.isatty():
            line = f"\x1b[1m{line}\x1b[0m"
        lines.append(line)
    return lines


def _paragraphs(rows: list[list[str]]) -> Iterator[str]:
    """Each row as a paragraph: its name, and below it a line for every other cell that is not empty, and for every part
    of one that ``; `` separates."""
    titles = rows[0][1:]
    widest = _longest(titles)
    for name, *cells in rows[1:]:
        yield name
        for title, cell in zip(titles, cells, strict=True):
            label = title
            for part in filter(None, cell.split("; ")):
                yield _hanging(f"  {label:{widest}}  ", part)
                label = ""  # the title stands before the first part alone


def _hanging(beginning: str, text: str) -> str:
    """``text`` after its ``beginning``; on a terminal it is wrapped, and continued below where it began."""
    room = _room() - len(beginning)
    if room == math.inf or room < 20:
        return beginning + text
    lines = textwrap.wrap(text, int(room), break_long_words=False, break_on_hyphens=False)
    return beginning + f"\n{' ' * len(beginning)}".join(lines)


def _room() -> float:
    """Columns of a line: those of the terminal, or as many as there are in a file or a pipe."""
    if sys.stdout.isatty():
        return shutil.get_terminal_size().columns
    return math.inf


def _longest(texts: Iterable[str]) -> int:
    return max(map(len, texts), default=0)
