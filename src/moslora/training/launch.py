"""Training in processes of its own, as the quickstart and experiments do."""

import os
import sys
from collections.abc import Sequence

import torch

from moslora.errors import Interrupted, MosloraError, UsageError
from moslora.processes.launch import STOPPED, launch


def train_in_processes(arguments: Sequence[str]) -> None:
    """``moslora train`` in a subprocess; without a GPU, in several: two are a third faster than two threads.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; training saved first.
        UsageError, MosloraError: training failed, and said why.
    """
    command = [sys.executable, "-m", "moslora", "train", *arguments]
    again = "the same command continues from the last checkpoint"
    code = launch(command, processes=worker_processes(), then=again)
    if code in STOPPED:
        raise Interrupted(f"stopped; the work so far is saved, and {again}", signal_number=code - 128)
    if code:
        fault = UsageError if code == UsageError.exit_code else MosloraError
        raise fault(f"training ended with exit code {code}; the lines above say why")


def worker_processes() -> int:
    """One on a GPU, otherwise one per core, at most four."""
    return 1 if torch.cuda.is_available() else min(4, os.cpu_count() or 1)
