"""Tables in the terminal."""

from collections.abc import Iterable


def print_described(names: list[tuple[str, str]]) -> None:
    """Prints names and what they are, a line each."""
    width = max(len(name) for name, _ in names)
    for name, purpose in names:
        print(f"{name:{width}}  {purpose}")


def print_table(rows: list[list[str]], *, above: Iterable[str] = (), below: Iterable[str] = ()) -> None:
    """Prints ``rows``, header first, all columns but the first right-aligned, between lines ``above`` and ``below``."""
    from rich.console import Console
    from rich.table import Table

    for line in above:
        print(line)
    if rows:
        table = Table(*rows[0], box=None, pad_edge=False)
        for column in table.columns[1:]:
            column.justify = "right"
        for row in rows[1:]:
            table.add_row(*row)
        console = Console()
        (console if console.is_terminal else Console(width=160)).print(table)  # in a file, no column is cut
    for line in below:
        print(line)
