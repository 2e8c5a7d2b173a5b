"""A command that runs in several processes."""

import sys
from pathlib import Path

import typer

from moslora.cli.options import importing
from moslora.errors import UsageError
from moslora.process_rank import launched
from moslora.runs import RUNS


def run_in_processes(
    processes: int | None, *, then: str, restarts: int | None = None, run: Path = RUNS, most: int | None = None
) -> None:
    """Runs this command in other processes and ends with their exit code, unless this is one of them or one is enough.

    Args:
        processes: typed by the user; ``None`` for one per GPU, up to ``most``.
        then: what the user can do after an interruption.
        restarts: how often a killed process is started again.
        run: the folder whose checkpoints tell whether a restart made progress.
    """
    from moslora.processes.launch import launch, launched_here, processes_to_start
    from moslora.runs.run import Run as TrainedRun

    with importing():
        count = processes_to_start(processes, most=most)
    if restarts and launched() and not launched_here():
        raise UsageError(f"--max-restarts {restarts}: another launcher runs these processes; leave it out")
    watched = restarts and not launched()  # by a process that restarts this one
    if count > 1 or watched:
        code = launch(
            [sys.executable, "-m", "moslora", *sys.argv[1:]],
            processes=count,
            then=then,
            restarts=restarts,
            steps_done=lambda: TrainedRun(run).steps_done,
        )
        raise typer.Exit(code)
