"""The command ``strength``: measures and applies an adapter at another strength than it was trained at."""

from pathlib import Path
from typing import Annotated

import typer

from moslora.cli import completion, examples, options
from moslora.cli.following import say_next
from moslora.cli.peft_folder import adapter_at
from moslora.cli.table import print_table
from moslora.errors import MosloraError, UsageError
from moslora.files import refuse_used

app = typer.Typer()


@app.command(epilog=examples.STRENGTH)
def strength(
    run: options.Run,
    value: Annotated[
        float | None, typer.Option("--set", help="Strength C of the result: W + C · ΔW, above 0 and at most 2.")
    ] = None,
    rows: Annotated[
        str | None, typer.Option(help="File of rows to measure on, like data.source. [default: the validation rows]")
    ] = None,
    texts: Annotated[
        str, typer.Option(help="Set of texts, or a YAML file that declares one.", autocompletion=completion.tasks)
    ] = "passages",
    out: Annotated[
        Path | None,
        typer.Option(help="Output folder, for the run at the strength.", callback=options.output_folder),
    ] = None,
    trust: options.Trust = False,
) -> None:
    """Apply an adapter more weakly, without training again.

    Measures what the run gains and forgets at strengths from 0 to 1.2, on its validation rows and on texts, and
    recommends one. --out writes the run at that strength, or at the one of --set.
    """
    if value is not None and (out is None or rows is not None):
        raise UsageError("--set writes without measuring: add --out FOLDER, and remove --rows")
    if out is not None:
        refuse_used(out)
    adapter = adapter_at(run, doing="applying", trust=trust)
    from moslora.runs.run import run_of

    with options.importing():
        from moslora.convert.strength import write_at_strength
        from moslora.strength.measure import measure_strength

    if value is None:
        curve = measure_strength(adapter, rows=rows, texts=texts, trust_remote_code=trust)
        print_table(curve.table(), above=[curve.heading], below=[curve.conclusion()])
        value = curve.recommended
        if value is None and out is not None:
            raise MosloraError(f"{out}: not written, because no strength is recommended; choose one with --set")
    if out is not None and value is not None:
        applied = write_at_strength(adapter, value, out, trust_remote_code=trust)
        print(f"strength {applied} written to {out}")
        say_next("eval", str(out))
    elif value not in (None, 1):
        say_next("strength", str(run), "--set", f"{value:g}", "--out", f"{run_of(adapter).path}-{value:g}")
