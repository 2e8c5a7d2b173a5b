"""The commands that describe and try a machine: ``env``, ``check`` and ``quickstart``."""

import sys
from contextlib import redirect_stdout
from typing import Annotated

import typer

from moslora import choices
from moslora.cli import completion, early, examples, options
from moslora.cli.table import print_table
from moslora.console import say
from moslora.files import refuse_used
from moslora.runs import RUNS

app = typer.Typer()


@app.command()
def env() -> None:
    """Print what a report of a fault needs.

    These are the versions, the device and the threads. A version that moslora was not tested with is followed by those
    that were.
    """
    _print_environment()


def _print_environment() -> dict[str, str]:
    """Print what the results of this machine depend on, each line as soon as it is there; return it by name."""
    from moslora.processes.environment import environment

    values = {}
    for name, value in environment():
        say(f"{name}: {value}")
        values[name] = value
    return values


@app.command(epilog=examples.CHECK)
def check(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL|RECIPE",
            help="Model folder or hub id, or a recipe. [default: the shapes of a small LLaMA]",
            autocompletion=completion.recipes_and_runs,
        ),
    ] = None,
    overrides: options.Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Check whether this machine computes right.

    On this machine's GPU or CPU, compares the values and gradients of every kernel with its plain formula, and a
    training step of two processes with that of one. Takes one or two minutes. A model's layers decide the shapes. With
    a recipe, also measures a real training step and prints it beside the plan.

    The exit code is 1 if a kernel computes wrong, and the last lines say which setting disables it.
    """
    recipe = None
    model = None
    if target is not None:
        recipe, model = early.recipe_or_model(target, overrides or ())
    with redirect_stdout(sys.stderr if as_json else sys.stdout):
        environment = _print_environment()
    with options.importing():
        from moslora.processes.devices import device, say_device
        from moslora.selfcheck.check import check as check_device
        from moslora.selfcheck.check import not_compared, real_step, to_json
        from moslora.selfcheck.piece import TITLES, said_of

    with redirect_stdout(sys.stderr if as_json else sys.stdout):
        step = real_step(recipe) if recipe else None  # first: on a CPU its memory is the process's peak
        if step:
            print_table(step)
        say_device(device().type)
        say("comparing the kernels with plain formulas, which takes one or two minutes ...")
        findings = list(check_device(model))
    off = [finding for finding in findings if not finding.passed]
    count = sum(finding.fits for finding in findings)
    said = said_of(off) if off else [f"all {count} comparisons are within their tolerances"]
    below = [*not_compared(findings), *said]
    if as_json:
        print(to_json(findings, environment=environment, step=step, said=below))
    else:
        print_table([TITLES, *(finding.row for finding in findings)], below=below)
    if off:
        raise typer.Exit(1)


@app.command(epilog=examples.QUICKSTART)
def quickstart(
    out: options.Out = None,
    size: Annotated[
        choices.SizeName | None,
        typer.Option(help="Share of the rows and questions. [default: the largest that takes five minutes here]"),
    ] = None,
) -> None:
    """Train, evaluate and merge a small real model on this machine.

    The same command continues where it was stopped.
    """
    from moslora.runs.run import Run

    out = out or RUNS / "quickstart"
    if not Run(out).exists:
        refuse_used(out)
    from moslora.quickstart import quickstart as run_quickstart

    table, lines = run_quickstart(out=out, size=size)
    print_table(table, below=lines)
