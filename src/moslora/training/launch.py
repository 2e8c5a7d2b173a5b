"""Training in separate processes, for the quickstart, experiments and reproductions."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from moslora.errors import Diverged, Interrupted, MosloraError, UsageError
from moslora.processes.devices import gpus
from moslora.processes.launch import PART, STOPPED, cores, launch
from moslora.recipe import TrainingSection
from moslora.runs.run import Run


def train_in_processes(
    arguments: Sequence[str],
    *,
    out: Path,
    processes: int,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run ``moslora train`` with these ``arguments`` in ``processes`` processes, which share :func:`cores`, and restart
    them after one was killed.

    Raises the error of the exit code. `Interrupted` means Ctrl-C or SIGTERM, with training saved, or too many kills.
    """
    again = "the same command continues from the last checkpoint"
    code = launch(
        [sys.executable, "-m", "moslora", "train", *arguments, "--out", str(out)],
        processes=processes,
        then=again,
        steps_done=lambda: Run(out).steps_done,
        environment={PART: "1", "OMP_NUM_THREADS": str(max(1, cores() // processes)), **(environment or {})},
    )
    if code in STOPPED:
        raise Interrupted(f"stopped: the work so far is saved, and {again}", signal_number=code - 128)
    if code:
        kinds = {kind.exit_code: kind for kind in (UsageError, Diverged)}
        raise kinds.get(code, MosloraError)(f"training ended with exit code {code}; the lines above say why")


def worker_processes(training: TrainingSection) -> int:
    """Number of processes: one on a GPU, otherwise one for each of :func:`cores`, at most four and at most a step's
    rows."""
    if gpus():
        return 1
    return min(4, cores(), training.global_batch_size)


def refuse_too_many_processes(processes: int, *, rows: int) -> None:
    """Refuse more processes than a step has rows. Fewer are allowed, even if the rows do not divide evenly."""
    if processes > rows:
        raise UsageError(
            f"{processes} processes are too many for {rows} rows per step; start {rows} or fewer, or set"
            f" training.global_batch_size={processes}"
        )
