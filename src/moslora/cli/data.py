"""``moslora data``: fetch, show and audit the eight sets."""

from typing import Annotated

import typer

from moslora.choices import LossOn, Split
from moslora.cli import completion
from moslora.cli.options import Format, MaxLength, Source, Tasks, Tokenizer
from moslora.cli.table import print_table

app = typer.Typer(help="Fetch, show and audit the eight commonsense sets.", no_args_is_help=True)


@app.command("fetch")
def fetch(tasks: Tasks = "commonsense", source: Source = "wheel") -> None:
    """Download the sets into the cache and count their rows."""
    from moslora.data.sources import fetch_rows
    from moslora.recipe import resolve_tasks

    for name, counts in fetch_rows(resolve_tasks(tasks), source=source):
        print(f"{name:18}" + "  ".join(f"{split} {count:,}" for split, count in counts.items()))


@app.command("show")
def show(
    task: Annotated[str, typer.Argument(help="Name of a set.", autocompletion=completion.tasks)],
    format: Format = "label",
    row: Annotated[int, typer.Option(help="Row number, from 0.", min=0)] = 0,
    split: Annotated[Split, typer.Option(help="Split of the set.")] = "train",
    source: Source = "wheel",
    model: Tokenizer = "smollm2-135m-instruct",
    max_length: MaxLength = 512,
    loss_on: Annotated[LossOn, typer.Option(help="Tokens in the loss.")] = "response",
) -> None:
    """Print one example as text and as tokens, with its label mask."""
    from moslora.base.load import load_tokenizer
    from moslora.data.encode import Encoder
    from moslora.data.show import show_example
    from moslora.errors import UsageError
    from moslora.recipe import ModelSection, resolve_tasks

    shown, *others = resolve_tasks(task)
    if others:
        raise UsageError(f"{task}: must be one set, such as {shown.name}")
    encoder = Encoder(load_tokenizer(ModelSection(name=model)), max_length=max_length)
    print(show_example(shown, encoder, split=split, row=row, format=format, source=source, loss_on=loss_on))


@app.command("audit")
def audit(
    tasks: Tasks = "commonsense",
    source: Source = "wheel",
    model: Tokenizer = "smollm2-135m-instruct",
    format: Format = "label",
    max_length: MaxLength = 512,
) -> None:
    """Count lengths, repeated rows, conflicting answers, and test questions among the training rows."""
    from moslora.base.load import load_tokenizer
    from moslora.data.audit import LEGEND, audit_rows
    from moslora.recipe import ModelSection, resolve_tasks

    tokenizer = load_tokenizer(ModelSection(name=model))
    table, notes = audit_rows(
        resolve_tasks(tasks), source=source, tokenizer=tokenizer, format=format, max_length=max_length
    )
    print_table(table, below=[LEGEND, *(f"note: {note}" for note in notes)])
