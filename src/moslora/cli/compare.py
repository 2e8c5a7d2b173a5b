"""The command ``compare``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from moslora.cli import completion
from moslora.cli.table import print_table
from moslora.errors import UsageError

app = typer.Typer()


@app.command()
def compare(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="A [B …]",
            help="Runs, folders of runs, or an experiment. A run alone is compared with its base.",
            autocompletion=completion.runs,
        ),
    ],
    contrast: Annotated[
        str | None,
        typer.Option(
            metavar="ARM,ARM", help="The comparison named beforehand: the second arm against the first. [default: A,B]"
        ),
    ] = None,
    outcome: Annotated[
        Literal["accuracy", "log_probability"] | None,
        typer.Option(help="The number compared, per question; cloze: per character. [default: accuracy]"),
    ] = None,
    margin: Annotated[
        float | None, typer.Option(help="A difference that does not matter. [default: 0.5 points or 0.01 nats]", min=0)
    ] = None,
    evaluation: Annotated[
        str | None, typer.Option(help="Folder in a run's eval/. [default: the recipe's]", metavar="NAME")
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="A difference of base, rows or steps that is meant.", metavar="FIELD")
    ] = None,
) -> None:
    """Compare runs, question by question and seed by seed.

    Runs whose recipes differ only in the seed are one arm; the arms are paired by seed. The last line says what can be
    concluded, and what cannot.
    """
    from moslora.study.compare import compare as compare_runs
    from moslora.study.verdict import lines, tables

    before, comma, after = (contrast or "").partition(",")
    if contrast is not None and not (before and after):
        raise UsageError(f"--contrast {contrast}: must be two arms, as in --contrast init-only,learned")
    named = (before, after) if comma else None
    found = compare_runs(paths, contrast=named, outcome=outcome, evaluation=evaluation, allowed=allow or ())
    for table in tables(found):
        print_table(table)
        print()
    for line in lines(found, margin=margin):
        print(line)
