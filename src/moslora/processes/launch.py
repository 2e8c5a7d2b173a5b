"""Start of one command's processes on this machine. Importing this module does not load torch."""

import ctypes
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from typing import Any

from rich import get_console

from moslora.console import note
from moslora.errors import Interrupted, UsageError, counted
from moslora.process_rank import launched, world_size

LAUNCHED_HERE = "MOSLORA_LAUNCHED"
"""Environment variable of the processes that :func:`launch` starts: the id of the process that started them."""

PART = "MOSLORA_PART"
"""Environment variable of a command that is part of another command, such as the quickstart, and suggests no next
one."""

STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit codes after Ctrl-C and SIGTERM."""

_ENDINGS = {
    signal.SIGKILL: ", perhaps for lack of memory",
    signal.SIGBUS: ", perhaps because /dev/shm is too small (Docker: --shm-size=8g)",
    signal.SIGABRT: ", probably by NCCL because a GPU hangs or is lost: see the lines above, or set NCCL_DEBUG=INFO",
}
"""Likely cause of a process's end by a signal."""

RESTARTS = 3
"""Default number of restarts after a kill."""


def launched_here() -> bool:
    """Whether :func:`launch` started this process."""
    return LAUNCHED_HERE in os.environ


def adopt_slurm(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set torch's environment variables from those of ``srun``; variables that are set stay.

    Only a job step has SLURM_STEP_NUM_TASKS. A batch script also has SLURM_PROCID, but is one process.
    """
    if "RANK" in environment or int(environment.get("SLURM_STEP_NUM_TASKS", 1)) == 1:
        return
    first = re.match(r"([^\[,]+)\[?(\d*)", environment["SLURM_STEP_NODELIST"])  # node[03-07,12], or node3,node4
    tasks_of_nodes: list[str] = []
    for tasks, nodes in re.findall(r"(\d+)(?:\(x(\d+)\))?", environment["SLURM_STEP_TASKS_PER_NODE"]):  # 8(x2),4
        tasks_of_nodes += [tasks] * int(nodes or 1)
    assert first and tasks_of_nodes
    variables = {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": tasks_of_nodes[int(environment.get("SLURM_NODEID", 0))],
        "MASTER_ADDR": first[1] + first[2],
        "MASTER_PORT": str(20_000 + int(environment["SLURM_JOB_ID"]) % 10_000),
    }
    environment.update({**variables, **environment})


def end_with_launcher() -> None:
    """End this process on Linux when its launcher is killed, so that it does not disturb a repeated command."""
    if launched_here() and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: when the parent ends
        if os.getppid() != int(os.environ[LAUNCHED_HERE]):  # the parent has ended already
            os.kill(os.getpid(), signal.SIGKILL)


def cores() -> int:
    """Number of cores that a command may use: OMP_NUM_THREADS, or all cores of this machine."""
    threads = re.match(r"\s*(\d+)", os.environ.get("OMP_NUM_THREADS", ""))  # 4,2 is for threads within threads
    if threads:
        return max(1, int(threads[1]))
    return os.cpu_count() or 1


def processes_to_start(wanted: int | None, *, most: int | None = None) -> int:
    """Number of processes to start: ``wanted``, or one per GPU; 1 if a launcher has started them.

    ``most`` is the maximum that would have work.

    Raises:
        UsageError: ``wanted`` is not the number of running processes, or exceeds the number of GPUs.
    """
    if launched():
        if wanted not in (None, world_size()):
            raise UsageError(
                f"--processes {wanted}: {world_size()} processes are running already, started by a launcher; leave"
                " the option out"
            )
        return 1
    if wanted is None and "ACCELERATE_MIXED_PRECISION" in os.environ:  # `accelerate launch` was to start one process
        return 1
    from moslora.processes.devices import gpus

    if wanted and 0 < gpus() < wanted:
        raise UsageError(f"--processes {wanted}: this machine has {counted(gpus(), 'GPU')}")
    if wanted:
        return wanted
    if most and gpus() > most:
        note(
            f"only {most} of {gpus()} GPUs are used, as a step has {counted(most, 'row')} (training.global_batch_size)"
        )
        return most
    return max(1, gpus())


def launch(
    command: Sequence[str],
    *,
    processes: int,
    then: str,
    restarts: int | None = None,
    steps_done: Callable[[], int] = lambda: 0,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run a ``command`` of moslora in several processes of this machine until all have ended.

    Signals are passed on, and the processes may save without a time limit. If one fails, the others are stopped, which
    would wait for it forever. If one was killed after a new checkpoint, all start again with --resume; never after an
    error that a process reported, nor after a signal to this process.

    Args:
        processes: number of processes.
        then: advice for the message if a process is killed.
        restarts: maximum number of restarts; by default :data:`RESTARTS`.
        steps_done: returns the number of saved steps.
        environment: additional environment variables of the processes.

    Returns:
        The exit code of the first process that failed and reported its error, or zero.

    Raises:
        Interrupted: a process was ended by a signal that it did not handle.
    """
    if restarts is None:
        restarts = RESTARTS
    for restart in range(restarts + 1):
        began_at = steps_done()
        started = list(command)
        if restart > 0:
            started.append("--resume")
        codes, signalled = _run(started, processes, environment or {})
        failed = [code for code in codes if code]
        reported = [code for code in failed if code > 0]
        if reported:
            return reported[0]
        if not failed:
            return 0
        # NCCL aborts processes that have lost another process.
        first = min(failed, key=lambda code: code == -signal.SIGABRT)
        signal_number = signal.Signals(-first)
        fault = f"rank {codes.index(first)} was killed by {signal_number.name}{_ENDINGS.get(signal_number, '')}"
        if signalled or restart == restarts or steps_done() == began_at:
            break
        note(f"{fault}; starting again from step {steps_done()} (restart {restart + 1} of {restarts})")
    raise Interrupted(f"{fault}; {then}", signal_number=signal_number)


_HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Signals for which torch's context sets handlers."""


def _run(command: Sequence[str], processes: int, environment: Mapping[str, str]) -> tuple[list[int | None], bool]:
    """Run ``command`` until all processes have ended or one has failed; the others are then stopped.

    Returns:
        The exit codes, ``None`` for processes that were stopped; and whether a signal was passed on.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, SubprocessContext

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # survives if the main process is killed
    threads = max(1, (os.cpu_count() or 1) // processes)
    shared = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        LAUNCHED_HERE: str(os.getpid()),
        **environment,
    }
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    handlers = {number: signal.getsignal(number) for number in _HANDLED}
    context = SubprocessContext(
        "moslora",
        command[0],
        args={rank: tuple(command[1:]) for rank in range(processes)},
        envs={rank: {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)},
        logs_specs=DefaultLogsSpecs(os.devnull),
    )
    try:
        context.start()
        return _wait([context.subprocess_handlers[rank].proc for rank in range(processes)])
    except SignalException as received:
        raise Interrupted("stopped before all had started", signal_number=received.sigval) from None
    finally:
        context.close(death_sig=signal.SIGKILL)
        with suppress(OSError):
            get_console().show_cursor()  # a killed process may have hidden it
        with suppress(ValueError):  # not the main thread, in which torch sets no handlers
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _wait(workers: Sequence[Any]) -> tuple[list[int | None], bool]:
    """Wait until all ``workers`` have ended or one has failed, and pass signals on; returns as :func:`_run`."""
    from torch.distributed.elastic.multiprocessing import SignalException

    signalled = False
    while True:
        try:
            codes = [worker.poll() for worker in workers]
            failed = [code for code in codes if code not in (None, 0, *STOPPED)]
            if failed or None not in codes:
                return codes, signalled
            time.sleep(0.05)
        except SignalException as received:
            signalled = True
            with suppress(OSError):  # the terminal is gone
                os.write(2, b"\nstopping once all have saved (Ctrl-C again stops at once) ...\n")
            for worker in workers:
                with suppress(ProcessLookupError):
                    os.killpg(worker.pid, received.sigval)
