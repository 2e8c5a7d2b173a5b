"""The command ``reproduce``."""

from pathlib import Path
from typing import Annotated

import typer

from moslora.cli import completion

app = typer.Typer()


@app.command()
def reproduce(
    run: Annotated[Path, typer.Argument(help="A finished run.", autocompletion=completion.runs)],
    out: Annotated[Path | None, typer.Option("--out", help="Folder to train in. [default: RUN-again]")] = None,
) -> None:
    """Train a run again, and compare: bitwise equal, within tolerance, or different from which step on."""
    from moslora.study.reproduce import reproduce as train_again

    print(train_again(run, out=out or run.with_name(f"{run.resolve().name}-again")))
