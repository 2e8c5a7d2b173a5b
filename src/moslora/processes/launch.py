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
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress

from rich import get_console

from moslora.console import note
from moslora.errors import Interrupted, UsageError

LAUNCHED_HERE = "MOSLORA_LAUNCHED"
"""Set in the processes that :func:`launch` has started: the process that did."""

PART = "MOSLORA_PART"
"""Set in the processes of a command that is a part of another, such as the quickstart: it names no next command."""

STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit codes after Ctrl-C and SIGTERM."""


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
    counts = re.findall(r"(\d+)(?:\(x(\d+)\))?", environment["SLURM_STEP_TASKS_PER_NODE"])  # 8(x2),4
    here = [tasks for tasks, nodes in counts for _ in range(int(nodes or 1))]
    assert first and here
    found = {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": here[int(environment.get("SLURM_NODEID", 0))],
        "MASTER_ADDR": first[1] + first[2],
        "MASTER_PORT": str(20_000 + int(environment["SLURM_JOB_ID"]) % 10_000),
    }
    environment.update({**found, **environment})


def end_with_launcher() -> None:
    """On Linux, ends this process when the one that launched it is killed: whoever repeats its work must not find this
    one in the folder."""
    if LAUNCHED_HERE in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: at the parent's end
        if os.getppid() != int(os.environ[LAUNCHED_HERE]):  # it has gone already
            os.kill(os.getpid(), signal.SIGKILL)


def cores() -> int:
    """The cores that a command may use: as many as OMP_NUM_THREADS says, or all of this machine."""
    said = re.match(r"\s*(\d+)", os.environ.get("OMP_NUM_THREADS", ""))  # 4,2 is for threads within threads
    return max(1, int(said[1])) if said else os.cpu_count() or 1


def processes_to_start(wanted: int | None, *, most: int | None = None) -> int:
    """How many processes should run this command here: as many as wanted, or one per GPU, but not more than ``most``
    that would have something to do; 1 if they run already."""
    if launched():
        if wanted not in (None, place()[1]):
            raise UsageError(
                f"--processes {wanted}: {place()[1]} processes are running already, started by a launcher; leave it out"
            )
        return 1
    if wanted is None and "ACCELERATE_MIXED_PRECISION" in os.environ:  # `accelerate launch`, told to start one
        return 1
    from moslora.processes.devices import gpus

    if wanted and 0 < gpus() < wanted:
        raise UsageError(f"--processes {wanted}: this machine has {gpus()} GPU{'s' * (gpus() != 1)}")
    if wanted:
        return wanted
    if most and gpus() > most:
        note(f"uses {most} of {gpus()} GPUs: a step has {most} row{'s' * (most != 1)}, training.global_batch_size")
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
    """Runs ``command``, one of moslora, in several ``processes`` of this machine until all have ended.

    Signals are passed on, and the processes have all the time they need to save. If one fails, the others, which would
    wait for it forever, are stopped. If one was killed after a new checkpoint, all start again with --resume; never
    after an error that one reported, nor after a signal to this process. They do so at most ``restarts`` times, by
    default three. ``then`` says how to go on if one is killed; ``steps_done`` returns the number of steps saved.

    Returns the exit code of the first that failed, which has said why, or zero. `Interrupted`: one was ended by a
    signal that it did not handle.
    """
    most = 3 if restarts is None else restarts
    for restart in range(most + 1):
        began_at = steps_done()
        codes, stopped = _run([*command, *["--resume"] * (restart > 0)], processes, environment or {})
        reported = [code for code in codes if code and code > 0]
        if reported or not any(codes):
            return next(iter(reported), 0)
        killed, by = next((rank, -code) for rank, code in enumerate(codes) if code and code < 0)
        fault = f"rank {killed} was killed by {signal.Signals(by).name}" + ", perhaps for lack of memory" * (by == 9)
        if stopped or restart == most or steps_done() == began_at:
            break
        note(f"{fault}; starting again from step {steps_done()} (restart {restart + 1} of {most})")
    raise Interrupted(f"{fault}; {then}", signal_number=by)


def _run(command: Sequence[str], processes: int, environment: Mapping[str, str]) -> tuple[list[int | None], bool]:
    """Runs ``command`` until all processes have ended or one has failed, and then stops the others. Returns the exit
    codes, ``None`` of those that were stopped, and whether a signal was passed on."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, SubprocessContext

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
    stopped = False
    try:
        context.start()
        workers = [context.subprocess_handlers[rank].proc for rank in range(processes)]
        while True:
            try:
                codes = [worker.poll() for worker in workers]
                if None not in codes or any(code not in (None, 0, *STOPPED) for code in codes):
                    return codes, stopped
                time.sleep(0.05)
            except SignalException as received:
                stopped = True
                with suppress(OSError):  # of a terminal that is gone
                    os.write(2, b"\nstopping, once all have saved (Ctrl-C again to stop at once) ...\n")
                for worker in workers:
                    with suppress(ProcessLookupError):
                        os.killpg(worker.pid, received.sigval)
    except SignalException as received:
        raise Interrupted("stopped before all had started", signal_number=received.sigval) from None
    finally:
        context.close(death_sig=signal.SIGKILL)
        with suppress(OSError):
            get_console().show_cursor()  # which one that was killed may have hidden
        for number, handler in before.items():
            signal.signal(number, handler)
