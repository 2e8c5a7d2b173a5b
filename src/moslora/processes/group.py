"""The processes of one command: they form torch's process group, must agree, and end together.

Each process comes with the facts it found, or with its fault, so that nobody waits for one that has failed. Rank 0
reports a fault that all know; after the group was formed, the rank that has a fault reports it. A process that leaves
the report to another one waits for it, and reports its own fault if there is none.
"""

import gc
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing import TimeoutError as NotInTime
from multiprocessing.pool import ThreadPool
from typing import Any, NoReturn, TypeVar

import psutil
import torch
import torch.distributed as dist
from accelerate.utils import check_cuda_p2p_ib_support
from torch.distributed.distributed_c10d import _get_default_group, _get_default_store

from moslora.console import say
from moslora.errors import Interrupted, MosloraError, UsageError, capped, counted, first_line
from moslora.process_rank import launched, local_rank, local_world_size, master_address, rank, world_size
from moslora.processes.devices import (
    device,
    gpu_module,
    gpus,
    is_out_of_memory,
    say_device,
    try_kernel,
    wait_for,
)
from moslora.processes.launch import STOPPED, launched_here

Value = TypeVar("Value")

TIMEOUT = timedelta(hours=3)
"""Time that a process waits for the others while they download and encode, and later load and save."""

TRAINING_TIMEOUT = timedelta(minutes=30)
"""Time that a GPU waits for the others' while they train."""

FIRST_EXCHANGE = timedelta(minutes=2)
"""Time in which the GPUs must connect."""

REPORT = timedelta(seconds=20)
"""Time that a process with a fault waits for another one to report it."""

INTERFACE = "GLOO_SOCKET_IFNAME"
"""The variable that names the network interface by which the processes connect."""

_joined = threading.Event()
"""Set once this process has joined the others; a later fault is not told through the forming of the group."""

_REPORTER = "moslora/reports"
"""Key in the group's store that counts the processes with a fault: the first one reports."""

_REPORTED = "moslora/reported"
"""Key in the group's store that is set once a fault is printed."""

_UNREPORTED = "moslora/unreported"
"""Key in the group's store that counts the processes that have waited for a report in vain: the first one reports."""

_CLOSED = re.compile(
    "connection closed by|socket (unexpectedly )?closed|broken pipe|connection reset by peer"  # gloo's tcp/pair.cc
    "|timed out waiting|application timeout"  # its tcp/unbound_buffer.cc: a machine that is gone closes nothing
    "|connection was likely closed"  # torch's store
    "|remote process exit",  # NCCL's ncclRemoteError
    re.IGNORECASE,
)
"""Texts of errors by which a backend says that another process has closed its connection, or answers no more."""

_CAUSES = {
    r"/dev/shm|shared memory|No space left": "/dev/shm is too small, as the 64 MB of a Docker container are; start the"
    " container with --shm-size=8g",
    r"peer access|P2P": "the GPUs cannot reach each other's memory; set NCCL_P2P_DISABLE=1",
    r"NET/IB|ibv_": "InfiniBand fails; set NCCL_IB_DISABLE=1, or allow locked memory: ulimit -l unlimited",
    "": "NCCL_DEBUG=INFO shows the cause; NCCL_P2P_DISABLE=1 and NCCL_IB_DISABLE=1 do without direct connections",
}
"""Pattern of a backend's error -> the likely cause and fix; the first that fits."""


class Lost(MosloraError):
    """The end of another process, which has reported it, or whose launcher does."""


class Shared(UsageError):
    """A fault that all processes know."""


@contextmanager
def process_group(facts: Mapping[str, Any], *, then: str) -> Iterator[None]:
    """The process group of the command, formed once all processes have come with the same ``facts``.

    A process without a launcher is by itself, and nothing is formed. Whatever uses the group must be released when the
    block ends. :func:`take_gpu` comes before.

    Args:
        facts: JSON values by their names in messages.
        then: how to go on if a process is lost, for the message.

    Raises:
        Shared: the processes found different facts, or some had a fault before.
        Lost: another process ended.
        MosloraError: the processes cannot exchange data.
    """
    if not launched():
        yield
        return
    try:
        found = _form_group(facts=facts)
        hosts = [each["host"] for each in found]
        if len(hosts) > 1:
            kind = "GPUs" if gpus() else "CPUs"
            say(f"{len(hosts)} processes on {counted(len(set(hosts)), 'machine')}, on {kind}")
        if gpus():
            _connect_gpus()
        yield
    except RuntimeError as error:
        is_of_backend = isinstance(error, dist.DistError) or "gloo" in str(error)
        if is_out_of_memory(error) or not is_of_backend:
            raise
        raise _of_backend(error, then) from None
    # Not after a fault: it may wait for the others. A sharded model goes first: as the last that refers to the group it
    # would destroy it with Python's lock in hand, for which the group's own thread may be waiting.
    gc.collect()
    dist.destroy_process_group()


def take_gpu() -> None:
    """Makes this process's GPU the current one. It comes before anything else that may reach a GPU: Triton launches on
    the current one, and on a GPU that is another process's torch would leave some hundred MB.

    Raises:
        UsageError: more processes than GPUs, or GPUs whose driver cannot connect them.
        MosloraError: the GPU computes nothing.
    """
    _check_gpus()
    if gpus():
        gpu_module().set_device(device())
        try_kernel(device())
    say_device(device().type)


def shorten_waits() -> None:
    """From here on a GPU waits :data:`TRAINING_TIMEOUT` for the others', and then ends its process: they hang. What the
    processes tell each other from the host, by gloo, keeps its time."""
    if dist.is_initialized() and gpus():
        _get_default_group()._get_backend(device())._set_default_timeout(TRAINING_TIMEOUT)


def rank_in_group() -> int:
    """This process's rank in the group; 0 without one."""
    if not dist.is_initialized():
        return 0
    return dist.get_rank()


def group_size() -> int:
    """Number of processes in the group; 1 without one."""
    if not dist.is_initialized():
        return 1
    return dist.get_world_size()


def all_gather(value: Value) -> list[Value]:
    """The ``value`` of every process, by rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def end(error: Exception) -> NoReturn:
    """Ends this process after a fault, which one of all processes reports, with its rank and host."""
    text = str(error) if isinstance(error, MosloraError) else "".join(traceback.format_exception(error))
    code = getattr(error, "exit_code", 1)
    if not _joined.is_set() and not isinstance(error, Interrupted):
        try:
            _form_group(fault=text, exit_code=code)
        except Shared as shared:
            end(shared)
        except (MosloraError, RuntimeError, KeyboardInterrupt):  # no group: this process reports its own fault
            pass
    for number in (signal.SIGINT, signal.SIGTERM):  # the launcher may be stopping this process for the same fault
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):  # a closed terminal
        if _reports(error) or not (isinstance(error, Interrupted) or _is_reported(error)):
            _report(text, exit_code=code)
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(code)  # the interpreter's end would wait for the group


def _reports(error: Exception) -> bool:
    """Whether this process reports a fault: rank 0 if all know it, otherwise the first process to claim it."""
    if isinstance(error, (Interrupted, Lost, Shared)) and rank() != 0:
        return False
    if isinstance(error, Lost) and launched_here():  # the launcher reports it
        return False
    return _is_first(_REPORTER)


def _is_reported(error: Exception) -> bool:
    """Waits until a fault is printed, for :data:`REPORT` at most. Returns whether another process prints it, or its own
    after the same wait.

    A launcher would stop the one that reports, if this process ended first, or not know that one was killed.
    """
    if not dist.is_initialized():
        time.sleep(REPORT.total_seconds())
        return False
    try:
        _get_default_store().wait([_REPORTED], REPORT)
        return True
    except RuntimeError:
        return isinstance(error, Shared) or not _is_first(_UNREPORTED)  # rank 0, which reports that, may have ended


def _is_first(key: str) -> bool:
    """Whether this process is the first of the group to ask this; without a group or its store, which ends with rank 0,
    each is."""
    if not dist.is_initialized():
        return True
    try:
        return _get_default_store().add(key, 1) == 1
    except RuntimeError:
        return True


def _report(text: str, *, exit_code: int) -> None:
    """Prints a fault, each line with this process's rank and host, and tells the others that it is printed."""
    label = "" if exit_code in STOPPED else "error: "
    prefix = label + _process_prefix(rank(), socket.gethostname())
    print("\n".join(prefix + line for line in text.splitlines()), file=sys.stderr, flush=True)
    if dist.is_initialized():
        with suppress(RuntimeError):
            _get_default_store().set(_REPORTED, "")


def _form_group(**found: Any) -> list[dict[str, Any]]:
    """Forms the group of all processes. Returns what each has found, by rank: the same facts, and no fault."""
    _joined.set()
    try:
        os.environ.setdefault(INTERFACE, _interface())  # gloo's own is that of this machine's name: 127.0.1.1 on some
        backend = "cpu:gloo,cuda:nccl" if gpus() else "gloo"
        with ThreadPool(1) as pool:  # torch's waiting does not end at a signal
            pool.apply(dist.init_process_group, (backend,), {"timeout": TIMEOUT})
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        kind = Lost if local_rank() else MosloraError  # one process of each machine reports it
        raise kind(
            f"the processes cannot connect at MASTER_ADDR:MASTER_PORT ({first_line(error)}); choose the machine of"
            f" rank 0 and a free port there, and in {INTERFACE} (here {os.environ.get(INTERFACE, '')}) the"
            " network interface by which this machine is reached"
        ) from None
    everything = all_gather({"host": socket.gethostname(), **found})
    refuse_faults(everything)
    refuse_other_facts(everything)
    return everything


def _connect_gpus() -> None:
    """Has the GPUs add up a number, so that a connection that fails or hangs is known before anything is loaded.

    Raises:
        MosloraError: they hang.
    """

    def add_up() -> None:
        dist.all_reduce(torch.ones(1, device=device()))
        wait_for(device())

    try:
        with ThreadPool(1) as pool:  # NCCL connects within the call
            pool.apply_async(add_up).get(FIRST_EXCHANGE.total_seconds())
    except NotInTime:
        interface = os.environ.get("NCCL_SOCKET_IFNAME", os.environ[INTERFACE])
        raise MosloraError(
            f"the GPUs have not connected within {FIRST_EXCHANGE} (network interface {interface}): NCCL_DEBUG=INFO"
            " shows where they hang; NCCL_SOCKET_IFNAME chooses the interface, and NCCL_P2P_DISABLE=1 and"
            " NCCL_IB_DISABLE=1 do without direct connections"
        ) from None


def _of_backend(error: RuntimeError, then: str) -> MosloraError:
    """The fault that an error of gloo, NCCL or the store stands for, with the line that says what happened: the last
    one of NCCL's."""
    text = str(error)
    line = (text.partition("Last error:")[2].strip() or text).splitlines()[0].partition(". ")[0]
    if _CLOSED.search(text):
        return Lost(f"another process has ended: {line}; {then}")
    cause = next(fix for pattern, fix in _CAUSES.items() if re.search(pattern, text))
    return MosloraError(f"the processes cannot exchange data: {line}; {cause}; {then}")


def _interface() -> str:
    """Name of the network interface of the route to MASTER_ADDR; on that machine itself, if others are to reach it, of
    that to other networks. Empty if nobody knows."""
    host, _ = master_address()
    address = _own_address(host)
    if address.startswith("127.") and world_size() > local_world_size():
        with suppress(OSError):  # there is none
            address = _own_address("192.0.2.1")  # of documents alone (RFC 5737)
    names = {one.address: name for name, those in psutil.net_if_addrs().items() for one in those}
    return names.get(address, "")


def _own_address(host: str) -> str:
    """This machine's address on the route to ``host``. Fails at once for an unknown name, for which torch would ask for
    three hours."""
    family, kind, _, _, there = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(there)  # sends nothing
        return str(probe.getsockname()[0])


def refuse_faults(found: Sequence[Mapping[str, Any]]) -> None:
    """Refuses to go on where a process had a fault. Every fault is listed once, with the first rank that has it.

    Args:
        found: by rank, ``host`` and either ``facts`` or ``fault`` and ``exit_code``.

    Raises:
        Shared: there is a fault; its exit code is the first one's.
    """
    faulty = [number for number, each in enumerate(found) if "fault" in each]
    if not faulty:
        return
    prefixes: dict[str, str] = {}
    for number in faulty:
        prefixes.setdefault(found[number]["fault"], _process_prefix(number, found[number]["host"]))
    lines: list[str] = []
    for fault, prefix in prefixes.items():
        lines += [prefix + line for line in fault.splitlines()]
    shared = Shared("\n".join(lines))
    shared.exit_code = found[faulty[0]]["exit_code"]
    raise shared


def refuse_other_facts(found: Sequence[Mapping[str, Any]]) -> None:
    """Refuses ``facts`` that are not those of rank 0. Arguments as in `refuse_faults`.

    Raises:
        Shared: names each differing fact with its rank.
    """
    expected = found[0]["facts"]
    differences = []
    for number, each in enumerate(found):
        prefix = _process_prefix(number, each["host"])
        for name in expected | each["facts"]:
            value = each["facts"].get(name)
            if value != expected.get(name):
                on_rank_0 = json.dumps(expected.get(name))
                differences.append(f"{prefix}{name} is {json.dumps(value)}, but {on_rank_0} on rank 0")
    if differences:
        raise Shared(
            f"{capped(differences)}\nall processes need the same recipe, rows, base, packages and run folder (a shared"
            " one, or a copy on each)"
        )


def _process_prefix(number: int, host: str) -> str:
    """How a line of a process begins; empty for rank 0."""
    if number == 0:
        return ""
    return f"rank {number} on {host}: "


def _check_gpus() -> None:
    """Refuses more processes on this machine than it has GPUs: two on one would run out of memory, or hang."""
    here = local_world_size()
    if here > gpus() > 0:
        raise UsageError(
            f"{here} processes on this machine, but this one sees {counted(gpus(), 'GPU')}; start {gpus()}"
            " (--processes, --num_processes, --nproc-per-node or --ntasks-per-node), and let each see all of the"
            " machine's (SLURM: --gpus-per-node, not --gpus-per-task)"
        )
    told = {"NCCL_P2P_DISABLE", "NCCL_IB_DISABLE"} <= os.environ.keys()
    if gpus() and here > 1 and not told and not check_cuda_p2p_ib_support():  # accelerate would end in a traceback
        raise UsageError(
            "the driver of these GPUs (RTX 40, before 550.40.07) cannot connect them directly; set"
            " NCCL_P2P_DISABLE=1 and NCCL_IB_DISABLE=1, or update it"
        )
