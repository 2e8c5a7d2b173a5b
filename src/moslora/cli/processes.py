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
    """Start this command in several processes and exit with their code.

    Returns without effect if one process is enough, or if this process is already one of several.

    Args:
        processes: number that the user set; ``None`` for one per GPU, up to ``most``.
        then: how the user can continue after an interruption, for the message.
        restarts: maximum number of restarts after a killed process.
        run: the run whose checkpoints show whether a restart made progress.
        most: maximum number of processes.
    """
    from moslora.processes.launch import launch, launched_here, processes_to_start
    from moslora.runs.run import Run as TrainedRun

    with importing():
        count = processes_to_start(processes, most=most)
    if restarts and launched() and not launched_here():
        raise UsageError(f"--max-restarts {restarts}: another launcher started these processes; remove this option")
    is_watched = restarts and not launched()
    if count > 1 or is_watched:
        code = launch(
            [sys.executable, "-m", "moslora", *sys.argv[1:]],
            processes=count,
            then=then,
            restarts=restarts,
            steps_done=lambda: TrainedRun(run).steps_done,
        )
        raise typer.Exit(code)
