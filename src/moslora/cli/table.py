"""Tables in the terminal."""

import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from itertools import zip_longest


def print_described(names: list[tuple[str, str]]) -> None:
    """Print names with their descriptions, a line each; a terminal shows a long description as an indented block."""
    width = max(len(name) for name, _ in names)
    for name, description in names:
        print(_hanging(f"{name:{width}}  ", description))


def print_table(rows: list[list[str]], *, above: Iterable[str] = (), below: Iterable[str] = ()) -> None:
    """Print ``rows``, header first, between the lines ``above`` and ``below``.

    The first column is left-aligned, the others right-aligned. If the columns do not fit a terminal, titles take
    several lines; if that is not enough, each row becomes a paragraph.
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
        lines.append("  ".join([name.ljust(widths[0]), *justified]))
    return lines


def _paragraphs(rows: list[list[str]]) -> Iterator[str]:
    """Write each row as a paragraph: its name, and a line for each part of its other cells; ``; `` separates parts."""
    titles = rows[0][1:]
    widest = _longest(titles)
    for name, *cells in rows[1:]:
        yield name
        for title, cell in zip(titles, cells, strict=True):
            label = title
            for part in filter(None, cell.split("; ")):
                yield _hanging(f"  {label:{widest}}  ", part)
                label = ""


def _hanging(beginning: str, text: str) -> str:
    """Write ``text`` after its ``beginning``, wrapped on a terminal and indented below where it begins."""
    room = max(20, _room() - len(beginning))
    lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)
    return beginning + f"\n{' ' * len(beginning)}".join(lines)


def _room() -> int:
    """Characters that fit into a line: as many as the terminal has columns; without a limit in a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize


def _longest(texts: Iterable[str]) -> int:
    return max(map(len, texts), default=0)
