"""The command ``predict``."""

from pathlib import Path
from typing import Annotated, Any

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
def predict(
    target: Annotated[str, options.TARGET],
    file: Annotated[Path, typer.Argument(help="Rows to answer: a .jsonl, .csv or .parquet file.", dir_okay=False)],
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
        choices.BadRows, typer.Option(help="skip: leave rows that are wrong without a prediction.")
    ] = "stop",
    protocol: options.Protocol = None,
    format: options.Format = None,
    base: options.Base = False,
    dtype: options.DType = None,
    engine: options.Engine = None,
    batch_tokens: options.BatchTokens = None,
    max_length: options.MaxQuestionLength = None,
    beams: options.Beams = None,
    server: options.Server = None,
    model: options.ServedModel = None,
    at_once: options.AtOnce = 8,
    processes: options.Processes = None,
    strategy: options.Strategy = None,
    trust: options.Trust = False,
) -> None:
    """Predict the answers of the rows in a file.

    Writes the same rows with the columns prediction, probability and probabilities; or, of answers in words, prediction
    and written. Uses all GPUs of this machine. Each different row is asked once, and the same command continues where
    it was stopped. With --server, a server with OpenAI's interface is asked what the model would be. A key is read from
    MOSLORA_SERVER_KEY.
    """
    early.refuse_mixed_models(server, model, here=base or dtype or engine or batch_tokens or strategy or processes)
    from moslora.data.unanswered import read_unanswered
    from moslora.evaluation.target import open_target

    overrides = options.typed(
        protocol=protocol, format=format, batch_tokens=batch_tokens, max_length=max_length, beams=beams
    )
    how: dict[str, Any] = {
        "base": base,
        "dtype": dtype,
        "engine": engine,
        "strategy": strategy,
        "trust_remote_code": trust,
    }
    opened = open_target(target, **how)
    described_by = opened.task_of_rows(task)
    out = out or file.with_name(f"{file.stem}-predicted{file.suffix}")
    _refuse_output(out, file)
    rows = read_unanswered(file, described_by)
    rows.refuse_bad_rows(bad_rows)
    opened = imported(opened, target, **how)
    if server is None:
        run_in_processes(processes, then="the same command continues from the answers so far")
    with options.importing():
        from moslora.evaluation.predict import columns_of, remarks
        from moslora.evaluation.predict import predict as predict_rows
        from moslora.evaluation.server import open_server

    with on_interrupt("stopped: the answers so far are kept, and the same command continues from there"):
        rows, predictions = predict_rows(
            opened,
            described_by,
            rows,
            bad_rows=bad_rows,
            server=open_server(server, model) if server else None,
            at_once=at_once,
            **overrides,
        )
    if is_main_process():
        rows.write(columns_of(rows, predictions), out)
        print(*remarks(rows, predictions), f"written to {out}", sep="\n")


def _refuse_output(out: Path, file: Path) -> None:
    """Refuses a file that is there, or whose ending is another one than that of the rows."""
    if out.suffix.lower() != file.suffix.lower():
        raise UsageError(f"--out {out}: must end in {file.suffix}, as the rows are written as they are")
    if out.exists() and not is_unfinished(out):  # of this command, killed a moment before its end
        raise UsageError(f"{out}: is there already; remove it, or choose another file with --out")
