"""Processes of one command: they form torch's process group, must agree on facts, and end together.

Each process joins the group with its facts or its fault, so that no process waits for a failed one. Rank 0 reports a
fault that all processes know, as when they form the group. A fault of one process later is reported by that process. A
process that leaves the report to another process waits for that report, and reports its own fault if none comes.
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

from moslora.borrowed import borrowed
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
"""Maximum time to wait for other processes while they download, encode, load or save."""

TRAINING_TIMEOUT = timedelta(minutes=30)
"""Maximum time to wait for other GPUs during training."""

FIRST_EXCHANGE = timedelta(minutes=2)
"""Maximum time for the GPUs to connect."""

REPORT = timedelta(seconds=20)
"""Maximum time that a process with a fault waits for another process to report it."""

INTERFACE = "GLOO_SOCKET_IFNAME"
"""Environment variable with the network interface by which the processes connect."""

_joined = threading.Event()
"""Set once this process has joined the group; a later fault is not reported by joining it."""

_REPORTER = "moslora/reports"
"""Key in the group's store that counts the processes with a fault; the first one reports."""

_REPORTED = "moslora/reported"
"""Key in the group's store that is set once a fault is printed."""

_UNREPORTED = "moslora/unreported"
"""Key in the group's store that counts the processes that waited for a report in vain; the first one reports."""

_CLOSED = re.compile(
    "connection closed by|socket (unexpectedly )?closed|broken pipe|connection reset by peer"  # gloo's tcp/pair.cc
    "|timed out waiting|application timeout"  # its tcp/unbound_buffer.cc: a machine that is gone closes nothing
    "|connection was likely closed"  # torch's store
    "|remote process exit",  # NCCL's ncclRemoteError
    re.IGNORECASE,
)
"""Pattern of a backend's errors when another process has closed its connection or no longer answers."""

_CAUSES = {
    r"/dev/shm|shared memory|No space left": "/dev/shm is too small, such as the 64 MB of a Docker container; start the"
    " container with --shm-size=8g",
    r"peer access|P2P": "the GPUs cannot reach each other's memory; set NCCL_P2P_DISABLE=1",
    r"NET/IB|ibv_": "InfiniBand fails; set NCCL_IB_DISABLE=1, or allow locked memory: ulimit -l unlimited",
    "": "NCCL_DEBUG=INFO shows the cause; NCCL_P2P_DISABLE=1 and NCCL_IB_DISABLE=1 avoid direct connections",
}
"""Pattern of a backend's error -> likely cause and fix; the first match counts."""


class Lost(MosloraError):
    """Another process has ended. It, or what launched it, reports why; this process reports nothing."""


class Shared(UsageError):
    """Fault that all processes know."""


@contextmanager
def process_group(facts: Mapping[str, Any], *, then: str) -> Iterator[None]:
    """Form the process group of the command once all processes have joined with the same ``facts``.

    A process without a launcher forms no group. Objects that use the group must be released when the block ends.
    :func:`take_gpu` must have been called.

    Args:
        facts: name in messages -> JSON value.
        then: advice for the message if a process is lost.

    Raises:
        Shared: the facts of the processes differ, or a process had a fault.
        Lost: another process ended.
        MosloraError: the processes cannot exchange data.
    """
    if not launched():
        yield
        return
    try:
        hosts = [process["host"] for process in _form_group(facts=facts)]
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
    # Not after a fault, because destroying the group may wait for the others. A sharded model is collected first: as
    # the last reference to the group it would destroy it while it holds Python's lock, for which the group's thread may
    # wait.
    gc.collect()
    dist.destroy_process_group()


def take_gpu() -> None:
    """Make this process's GPU the current one, before anything else uses a GPU.

    Triton launches on the current GPU, and on another process's GPU torch would leave some hundred MB.

    Raises:
        UsageError: more processes than GPUs, or GPUs whose driver cannot connect them.
        MosloraError: the GPU cannot compute.
    """
    _check_gpus()
    if gpus():
        gpu_module().set_device(device())
        try_kernel(device())
    say_device(device().type)


def shorten_waits() -> None:
    """From now on, end this process once its GPU has waited :data:`TRAINING_TIMEOUT` for the others, as these then
    hang.

    The timeout of messages between hosts, by gloo, does not change.
    """
    backend_of = borrowed("torch.distributed.ProcessGroup._get_backend")
    if dist.is_initialized() and gpus() and backend_of is not None:
        backend_of(dist.group.WORLD, device()).set_timeout(TRAINING_TIMEOUT)


def rank_in_group() -> int:
    """Rank of this process in the group; 0 without a group."""
    if not dist.is_initialized():
        return 0
    return dist.get_rank()


def group_size() -> int:
    """Number of processes in the group; 1 without a group."""
    if not dist.is_initialized():
        return 1
    return dist.get_world_size()


def all_gather(value: Value) -> list[Value]:
    """Values of all processes, by rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def end(error: Exception) -> NoReturn:
    """End this process after a fault, which one process of the command reports with rank and host."""
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
    os._exit(code)  # a normal exit of the interpreter would wait for the group


def _reports(error: Exception) -> bool:
    """Whether this process reports a fault: rank 0 if all know it, otherwise the first process that asks."""
    if isinstance(error, (Interrupted, Lost, Shared)) and rank() != 0:
        return False
    if isinstance(error, Lost) and launched_here():  # the launcher reports it
        return False
    return _is_first(_REPORTER)


def _is_reported(error: Exception) -> bool:
    """Wait, at most :data:`REPORT`, until a process has printed its fault; return whether another process has.

    If this process ended earlier, the launcher would stop the process that is still printing, or would not learn that a
    process had been killed.
    """
    store = _store()
    if store is None:
        time.sleep(REPORT.total_seconds())
        return False
    try:
        store.wait([_REPORTED], REPORT)
        return True
    except RuntimeError:
        return isinstance(error, Shared) or not _is_first(_UNREPORTED)  # rank 0, which reports that, may have ended


def _is_first(key: str) -> bool:
    """Whether this process is the first of the group to ask for ``key``.

    Each process is the first without a group, and after rank 0 has ended, with which the group's store ends.
    """
    store = _store()
    if store is None:
        return True
    try:
        return bool(store.add(key, 1) == 1)
    except RuntimeError:
        return True


def _report(text: str, *, exit_code: int) -> None:
    """Print a fault, each line with this process's rank and host, and record in the store that it is printed."""
    label = "" if exit_code in STOPPED else "error: "
    prefix = label + _process_prefix(rank(), socket.gethostname())
    print("\n".join(prefix + line for line in text.splitlines()), file=sys.stderr, flush=True)
    store = _store()
    if store is not None:
        with suppress(RuntimeError):
            store.set(_REPORTED, "")


def _store() -> Any:
    """Return the group's store of keys and values; ``None`` without a group."""
    default_store = borrowed("torch.distributed.distributed_c10d._get_default_store")
    if default_store is None or not dist.is_initialized():
        return None
    return default_store()


def _form_group(**report: Any) -> list[dict[str, Any]]:
    """Form the group of all processes and return their reports by rank. Facts that differ, and faults, are refused.

    Args:
        report: ``facts``, or ``fault`` and ``exit_code``.
    """
    _joined.set()
    try:
        os.environ.setdefault(INTERFACE, _interface())  # gloo may use 127.0.1.1, the host name's
        backend = "cpu:gloo,cuda:nccl" if gpus() else "gloo"
        with ThreadPool(1) as pool:  # torch would not stop waiting at a signal
            pool.apply(dist.init_process_group, (backend,), {"timeout": TIMEOUT})
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        kind = Lost if local_rank() else MosloraError  # one process of each machine reports it
        raise kind(
            f"the processes cannot connect at MASTER_ADDR:MASTER_PORT ({first_line(error)}); choose the machine of"
            f" rank 0 and a free port there, and in {INTERFACE} (here {os.environ.get(INTERFACE, '')}) the"
            " network interface by which this machine is reached"
        ) from None
    reports = all_gather({"host": socket.gethostname(), **report})
    refuse_faults(reports)
    refuse_other_facts(reports)
    return reports


def _connect_gpus() -> None:
    """Add up a number over all GPUs, to find a connection that fails or hangs before anything is loaded.

    Raises:
        MosloraError: the connection hangs.
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
            " NCCL_IB_DISABLE=1 avoid direct connections"
        ) from None


def _of_backend(error: RuntimeError, then: str) -> MosloraError:
    """Error with cause and fix for an error of gloo, NCCL or the store, of whose text one line is quoted."""
    text = str(error)
    line = (text.partition("Last error:")[2].strip() or text).splitlines()[0].partition(". ")[0]
    if _CLOSED.search(text):
        return Lost(f"another process has ended: {line}; {then}")
    cause = next(fix for pattern, fix in _CAUSES.items() if re.search(pattern, text))
    return MosloraError(f"the processes cannot exchange data: {line}; {cause}; {then}")


def _interface() -> str:
    """Name of the network interface of the route to MASTER_ADDR; empty if it is unknown.

    On the machine MASTER_ADDR itself it is that of the route to other networks, if other machines take part.
    """
    host, _ = master_address()
    address = _own_address(host)
    if address.startswith("127.") and world_size() > local_world_size():
        with suppress(OSError):  # no such route
            address = _own_address("192.0.2.1")  # an address reserved for documentation (RFC 5737)
    names = {one.address: name for name, addresses in psutil.net_if_addrs().items() for one in addresses}
    return names.get(address, "")


def _own_address(host: str) -> str:
    """Address of this machine on the route to ``host``.

    An unknown name fails at once, which torch would look up for three hours.
    """
    family, kind, _, _, target = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(target)  # sends nothing
        return str(probe.getsockname()[0])


def refuse_faults(reports: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to go on if a process had a fault. Every fault is listed once, with the first rank that has it.

    Args:
        reports: by rank, ``host`` and either ``facts`` or ``fault`` and ``exit_code``.

    Raises:
        Shared: there is a fault; its exit code is the first one's.
    """
    faulty = [number for number, report in enumerate(reports) if "fault" in report]
    if not faulty:
        return
    prefixes: dict[str, str] = {}
    for number in faulty:
        prefixes.setdefault(reports[number]["fault"], _process_prefix(number, reports[number]["host"]))
    lines: list[str] = []
    for fault, prefix in prefixes.items():
        lines += [prefix + line for line in fault.splitlines()]
    shared = Shared("\n".join(lines))
    shared.exit_code = reports[faulty[0]]["exit_code"]
    raise shared


def refuse_other_facts(reports: Sequence[Mapping[str, Any]]) -> None:
    """Refuse ``facts`` that differ from those of rank 0; arguments as in :func:`refuse_faults`.

    Raises:
        Shared: names each differing fact with its rank.
    """
    expected = reports[0]["facts"]
    differences = []
    for number, report in enumerate(reports):
        prefix = _process_prefix(number, report["host"])
        for name in expected | report["facts"]:
            value = report["facts"].get(name)
            if value != expected.get(name):
                on_rank_0 = json.dumps(expected.get(name))
                differences.append(f"{prefix}{name} is {json.dumps(value)}, but {on_rank_0} on rank 0")
    if differences:
        raise Shared(
            f"{capped(differences)}\nall processes need the same recipe, rows, base, packages and run folder (a shared"
            " one, or a copy on each)"
        )


def _process_prefix(number: int, host: str) -> str:
    """Prefix of a process's lines; empty for rank 0."""
    if number == 0:
        return ""
    return f"rank {number} on {host}: "


def _check_gpus() -> None:
    """Refuse more processes on this machine than it has GPUs: two on one GPU would run out of memory, or hang."""
    processes = local_world_size()
    if processes > gpus() > 0:
        raise UsageError(
            f"{processes} processes on this machine, but this process sees {counted(gpus(), 'GPU')}; start as many as"
            " GPUs (--processes, --num_processes, --nproc-per-node or --ntasks-per-node), and let each see all of the"
            " machine's (SLURM: --gpus-per-node, not --gpus-per-task)"
        )
    is_indirect = {"NCCL_P2P_DISABLE", "NCCL_IB_DISABLE"} <= os.environ.keys()
    if (
        gpus() and processes > 1 and not is_indirect and not check_cuda_p2p_ib_support()
    ):  # accelerate would raise a traceback
        raise UsageError(
            "the driver of these GPUs (RTX 40, before 550.40.07) cannot connect them directly; set"
            " NCCL_P2P_DISABLE=1 and NCCL_IB_DISABLE=1, or update it"
        )
