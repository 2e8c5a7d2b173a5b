"""Runs one command in several local processes, which connect through torch's environment variables."""

import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence


def run_in_processes(command: Sequence[str], *, processes: int, environment: Mapping[str, str]) -> int:
    """Runs ``command`` in every process until all have ended.

    If a process fails, the others are stopped, because they would wait for it forever. Ctrl-C and SIGTERM are passed on
    as SIGTERM, and the processes are waited for, so that all can save.

    Args:
        command: program and arguments.
        processes: how many.
        environment: added to this process's own.

    Returns:
        The first exit code that is not zero, or zero.

    Raises:
        KeyboardInterrupt: after the processes have ended (:class:`moslora.errors.Terminated` for SIGTERM).
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meeting = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(processes):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            workers.append(subprocess.Popen(command, env={**os.environ, **environment, **meeting, **place}))
        while not any(worker.poll() for worker in workers) and any(worker.poll() is None for worker in workers):
            time.sleep(0.1)
    finally:
        for worker in workers:
            worker.terminate()
        codes = [worker.wait() for worker in workers]
    return next((code for code in codes if code), 0)
