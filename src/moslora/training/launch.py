"""One command in several processes of this machine, which find each other through torch's environment variables."""

import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence


def run_in_processes(command: Sequence[str], *, processes: int, environment: Mapping[str, str]) -> int:
    """Runs ``command`` in every process until all have ended.

    A process that fails ends the others, which would wait for it for ever. Ctrl-C and SIGTERM are passed on as
    SIGTERM and waited for, so that all can save.

    Args:
        command: program and arguments.
        processes: how many; each is told its rank.
        environment: laid over this process's own.

    Returns:
        The first exit code that is not zero, or zero.

    Raises:
        KeyboardInterrupt: (:class:`moslora.errors.Terminated` for SIGTERM) after the processes have ended.
    """
    meeting = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
