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
    task: Annotated[str, typer.Argument(help="A set, or a recipe with tasks.", autocompletion=completion.tasks)],
    format: Format = None,
    row: Annotated[int, typer.Option(help="Row number, from 0.", min=0)] = 0,
    split: Annotated[Split | None, typer.Option(help="[default: train, if there is such a split]")] = None,
    source: Source = "wheel",
    model: Tokenizer = None,
    max_length: MaxLength = None,
    loss_on: Annotated[LossOn | None, typer.Option(help="Tokens in the loss. [default: the recipe's]")] = None,
) -> None:
    """Print an example of each task as text and as tokens, with its label mask."""
    from moslora.base.load import load_tokenizer
    from moslora.data.encode import Encoder
    from moslora.data.show import show_example
    from moslora.recipe import ModelSection, recipe_of_tasks, resolve_tasks

    recipe = recipe_of_tasks(task)
    data, section = recipe.data, ModelSection(name=model) if model else recipe.model
    encoder = Encoder(load_tokenizer(section), max_length=max_length or data.max_length)
    format, loss_on = format or data.format, loss_on or data.loss_on
    for shown in resolve_tasks(task):
        there = split or ("train" if "train" in shown.splits else "test")
        print(show_example(shown, encoder, split=there, row=row, format=format, source=source, loss_on=loss_on))


@app.command("audit")
def audit(
    tasks: Tasks = "commonsense",
    source: Source = "wheel",
    model: Tokenizer = None,
    format: Format = None,
    max_length: MaxLength = None,
) -> None:
    """Count lengths, repeated rows, conflicting answers, and test questions among the training rows."""
    from moslora.base.load import load_tokenizer
    from moslora.data.audit import LEGEND, audit_rows
    from moslora.recipe import ModelSection, recipe_of_tasks, resolve_tasks

    recipe = recipe_of_tasks(tasks)
    tokenizer = load_tokenizer(ModelSection(name=model) if model else recipe.model)
    format, limit = format or recipe.data.format, max_length or recipe.data.max_length
    table, notes = audit_rows(resolve_tasks(tasks), source=source, tokenizer=tokenizer, format=format, max_length=limit)
    print_table(table, below=[LEGEND, *(f"note: {note}" for note in notes)])
