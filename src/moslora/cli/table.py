"""Tables on the screen."""


def print_table(rows: list[list[str]]) -> None:
    """Prints ``rows``, the first of which is the header; all columns but the first are flush right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*rows[0], box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows[1:]:
        table.add_row(*row)
    # A table that is piped into a file keeps its columns.
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)
