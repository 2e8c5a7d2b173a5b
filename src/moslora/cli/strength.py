"""The command ``strength``: an adapter applied more weakly or more strongly than it was trained."""

from pathlib import Path
from typing import Annotated

import typer

from moslora.cli import examples, options
from moslora.cli.following import say_next
from moslora.cli.peft_folder import adapter_to_convert
from moslora.errors import UsageError

app = typer.Typer()


@app.command(epilog=examples.STRENGTH)
def strength(
    run: options.Run,
    value: Annotated[
        float | None, typer.Option("--set", help="Strength C of the result: W + C · ΔW, above 0 and at most 2.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder.")] = None,
    trust: options.Trust = False,
) -> None:
    """Apply an adapter more weakly, without training again.

    With --set, writes the adapter with C times the change as a new run.
    """
    if value is None or out is None:
        raise UsageError("give the strength with --set, such as 0.8, and the folder of the result with --out")
    adapter, out = adapter_to_convert(run, out, None, name="", doing="applying", trust=trust)
    from moslora.convert.strength import write_at_strength

    applied = write_at_strength(adapter, value, out, trust_remote_code=trust)
    print(f"strength {applied} written to {out}")
    say_next("eval", str(out))
