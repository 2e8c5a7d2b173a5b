"""The command ``predict``: answers for the rows of a file."""

from pathlib import Path
from typing import Annotated

import typer

from moslora import choices
from moslora.cli import completion, early, examples, options
from moslora.cli.peft_folder import imported
from moslora.cli.processes import run_in_processes
from moslora.errors import UsageError, on_interrupt
from moslora.files import is_unfinished
from moslora.process_rank import is_main_process

app = typer.Typer()


@app.command(epilog=examples.PREDICT)
@options.with_answering
def predict(
    target: Annotated[str, options.TARGET],
    file: Annotated[Path, typer.Argument(help="Rows to answer: .jsonl, .csv, .tsv or .parquet.", dir_okay=False)],
    out: Annotated[
        Path | None,
        typer.Option(help="File to write. [default: FILE with -predicted in its name]", dir_okay=False),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="Task that describes the rows, or a YAML file with one. [default: the run's only one]",
            autocompletion=completion.tasks,
        ),
    ] = None,
    bad_rows: Annotated[
        choices.BadRows, typer.Option(help="stop at bad rows, or skip them: they get no prediction.")
    ] = "stop",
    *,
    answering: options.Answering,
) -> None:
    """Predict the answers of the rows in a file.

    Writes the same rows with the columns prediction, probability and probabilities; for answers in words with the
    columns prediction and written. Equal rows are asked once. Uses all GPUs of this machine. If it was stopped, the
    same command continues.

    With --server, a server with OpenAI's interface answers instead of the model. MOSLORA_SERVER_KEY may have its key.
    """
    early.refuse_mixed_models(answering)
    from moslora.data.unanswered import read_unanswered
    from moslora.evaluation.target import open_target

    opened = open_target(target, **answering.how)
    task_of_rows = opened.task_of_rows(task)
    out = out or file.with_name(f"{file.stem}-predicted{file.suffix}")
    _refuse_output(out, file)
    rows = read_unanswered(file, task_of_rows)
    rows.refuse_bad_rows(bad_rows)
    opened = imported(opened, target, **answering.how)
    if answering.server is None:
        run_in_processes(answering.processes, then="the same command continues from the answers so far")
    with options.importing():
        from moslora.evaluation.predict import columns_of, remarks
        from moslora.evaluation.predict import predict as predict_rows
        from moslora.evaluation.server import open_server

    with on_interrupt("stopped: the answers so far are kept, and the same command continues from there"):
        rows, predictions = predict_rows(
            opened,
            task_of_rows,
            rows,
            bad_rows=bad_rows,
            server=open_server(answering.server, answering.model) if answering.server else None,
            at_once=answering.at_once,
            **answering.overrides,
        )
    if is_main_process():
        rows.write(columns_of(rows, predictions), out)
        print(*remarks(rows, predictions), f"written to {out}", sep="\n")


def _refuse_output(out: Path, file: Path) -> None:
    """Refuse an output file that exists, or whose ending differs from that of the rows."""
    if out.suffix.lower() != file.suffix.lower():
        raise UsageError(f"--out {out}: must end in {file.suffix}, like the file of the rows")
    if out.exists() and not is_unfinished(out):
        raise UsageError(f"{out}: already exists; remove it, or choose another file with --out")
