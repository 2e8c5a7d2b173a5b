"""Who this process is among those of its command, and how to start them. Importing this does not load torch.

torch's environment variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, …) say it, whoever set them: torchrun,
`accelerate launch`, :func:`adopt_slurm`, or :func:`launch` here.
"""

import ctypes
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from subprocess import Popen
from types import MappingProxyType

from moslora.errors import MosloraError, UsageError

FAULT = "moslora/fault"
"""Key in the store of the processes: whoever is the first to add to it tells of the fault."""

LAUNCHED_HERE = "MOSLORA_LAUNCHED"
"""Set in the processes that :func:`launch` has started: the process that did."""

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: the signal that a process gets when its parent ends."""

STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit codes after Ctrl-C and SIGTERM."""


class Killed(MosloraError):
    """A process was ended by a signal. Exit code 128 + the signal's number."""

    def __init__(self, message: str, *, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def launched() -> bool:
    """Whether a launcher has started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def place() -> tuple[int, int]:
    """This process's rank, and the number of processes; ``(0, 1)`` without a launcher."""
    return (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) if launched() else (0, 1)


def adopt_slurm(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets torch's variables from those of ``srun``; those that are set already remain.

    Only a job step has SLURM_STEP_NUM_TASKS. A batch script has SLURM_PROCID as well, but is one process.
    """
    if "RANK" in environment or int(environment.get("SLURM_STEP_NUM_TASKS", 1)) == 1:
        return
    first = re.match(r"([^\[,]+)\[?(\d*)", environment["SLURM_STEP_NODELIST"])  # node[03-07,12], or node3,node4
    here = re.match(r"\d+", environment["SLURM_STEP_TASKS_PER_NODE"])  # 8(x2), or 8,4
    assert first and here
    found = {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": here[0],
        "MASTER_ADDR": first[1] + first[2],
        "MASTER_PORT": str(20_000 + int(environment["SLURM_JOB_ID"]) % 10_000),
    }
    for name, value in found.items():
        environment.setdefault(name, value)


def end_with_launcher() -> None:
    """On Linux, ends this process when the one that launched it is killed: whoever repeats its work must not find this
    one in the folder."""
    if LAUNCHED_HERE in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(os.environ[LAUNCHED_HERE]):  # it has gone already
            os.kill(os.getpid(), signal.SIGKILL)


def processes_to_start(wanted: int | None) -> int:
    """How many processes should run this command here: as many as wanted, or one per GPU; 1 if they run already.

    Raises:
        UsageError: more than there are GPUs, or another launcher has decided.
    """
    if launched():
        if wanted not in (None, place()[1]):
            raise UsageError(f"--processes {wanted}: a launcher has started {place()[1]} already; leave it out")
        return 1
    if wanted is None and "ACCELERATE_MIXED_PRECISION" in os.environ:  # `accelerate launch`, told to start one
        return 1
    from moslora.processes.devices import gpus

    if wanted is not None and 0 < gpus() < wanted:
        raise UsageError(f"--processes {wanted}: this machine has {gpus()} GPU{'s' * (gpus() != 1)}")
    return wanted or max(1, gpus())


def launch(
    command: Sequence[str], *, processes: int, then: str, environment: Mapping[str, str] = MappingProxyType({})
) -> int:
    """Runs ``command``, one of moslora, in several processes of this machine until all have ended.

    Signals are passed on, and the processes have all the time they need to save. If one fails, the others, which would
    wait for it forever, are stopped.

    Args:
        command: program and arguments.
        processes: how many.
        then: how to go on if one is killed.
        environment: variables that are set for them.

    Returns:
        The exit code of the first that failed, which has said why, or zero.

    Raises:
        Killed: a process was ended by a signal that it did not handle.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SubprocessContext

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # lives on if the main process is killed
    shared = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes))),
        LAUNCHED_HERE: str(os.getpid()),
        **environment,
    }
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)  # those that the context handles
    before = {number: signal.getsignal(number) for number in handled}
    context = SubprocessContext(
        "moslora",
        command[0],
        args={rank: tuple(command[1:]) for rank in range(processes)},
        envs={rank: {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)},
        logs_specs=DefaultLogsSpecs(os.devnull),
    )
    try:
        context.start()
        codes = _wait([context.subprocess_handlers[rank].proc for rank in range(processes)])
        killed = next((rank for rank, code in enumerate(codes) if code and code < 0), None)
        untold = killed is not None and store.add(FAULT, 1) == 1  # before the others are stopped, and speak
    finally:
        context.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    if killed is not None and untold:
        by = signal.Signals(-(codes[killed] or 0))
        reason = ", perhaps for lack of memory" * (by == signal.SIGKILL)
        raise Killed(f"rank {killed} was killed by {by.name}{reason}; {then}", signal_number=by)
    return next((code if code > 0 else 128 - code for code in codes if code), 0)


def _wait(workers: Sequence["Popen[bytes]"]) -> list[int | None]:
    """Waits until all have ended or one has failed, and passes signals on.

    Returns:
        Exit codes; ``None`` of those that still run.
    """
    from torch.distributed.elastic.multiprocessing import SignalException

    while True:
        try:
            codes = [worker.poll() for worker in workers]
            if None not in codes or any(code not in (None, 0, *STOPPED) for code in codes):
                return codes
            time.sleep(0.05)
        except SignalException as received:
            os.write(2, b"\nstopping, once all have saved (Ctrl-C again to stop at once) ...\n")
            for worker in workers:
                with suppress(ProcessLookupError):
                    os.killpg(worker.pid, received.sigval)


def this_command() -> list[str]:
    """The command that was typed, as :func:`launch` takes it."""
    return [sys.executable, "-m", "moslora", *sys.argv[1:]]
