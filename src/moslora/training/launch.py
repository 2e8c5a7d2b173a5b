"""Training in processes of its own, as the quickstart, experiments and a reproduction do."""

import os
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from moslora.errors import Diverged, Interrupted, MosloraError, UsageError
from moslora.processes.devices import gpus
from moslora.processes.launch import STOPPED, launch


def train_in_processes(
    arguments: Sequence[str], *, processes: int | None = None, environment: Mapping[str, str] = MappingProxyType({})
) -> None:
    """``moslora train`` in a subprocess; without a GPU, in several.

    Args:
        arguments: of the command.
        processes: instead of that number.
        environment: variables that are set for them.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; training saved first.
        UsageError, Diverged, MosloraError: training failed, and said why.
    """
    command = [sys.executable, "-m", "moslora", "train", *arguments]
    again = "the same command continues from the last checkpoint"
    code = launch(command, processes=processes or worker_processes(), then=again, environment=environment)
    if code in STOPPED:
        raise Interrupted(f"stopped; the work so far is saved, and {again}", signal_number=code - 128)
    if code:
        fault = next((kind for kind in (UsageError, Diverged) if code == kind.exit_code), MosloraError)
        raise fault(f"training ended with exit code {code}; the lines above say why")


def worker_processes() -> int:
    """One on a GPU, otherwise one per core, at most four."""
    return 1 if gpus() else min(4, os.cpu_count() or 1)
