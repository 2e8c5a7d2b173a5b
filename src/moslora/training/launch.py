"""Training in processes of its own, as the quickstart, experiments and a reproduction do."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from moslora.errors import Diverged, Interrupted, MosloraError, UsageError
from moslora.processes.devices import gpus
from moslora.processes.launch import STOPPED, launch
from moslora.runs.run import Run


def train_in_processes(
    arguments: Sequence[str],
    *,
    out: Path,
    processes: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """``moslora train`` with these ``arguments`` in :func:`worker_processes`, started again after one was killed.

    Raises what its exit code stands for. `Interrupted` is Ctrl-C or SIGTERM, with training saved, or too many kills.
    """
    again = "the same command continues from the last checkpoint"
    code = launch(
        [sys.executable, "-m", "moslora", "train", *arguments, "--out", str(out)],
        processes=processes or worker_processes(),
        then=again,
        steps_done=lambda: Run(out).steps_done,
        environment=environment,
    )
    if code in STOPPED:
        raise Interrupted(f"stopped: the work so far is saved, and {again}", signal_number=code - 128)
    if code:
        fault = next((kind for kind in (UsageError, Diverged) if code == kind.exit_code), MosloraError)
        raise fault(f"training ended with exit code {code}; the lines above say why")


def worker_processes() -> int:
    """One on a GPU, otherwise one per core, at most four."""
    return 1 if gpus() else min(4, os.cpu_count() or 1)
