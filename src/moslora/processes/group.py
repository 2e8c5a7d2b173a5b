"""The processes of one command: they compare what they found, work as a group, and end together.

Each brings what it found, or its fault, to the meeting, so that nobody waits for one that has failed. Rank 0 reports
what all know; a later fault is reported by the rank that has it.
"""

import gc
import json
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from multiprocessing.pool import ThreadPool
from typing import Any, NoReturn, TypeVar

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from moslora.console import note, say
from moslora.errors import Interrupted, MosloraError, UsageError, capped, counted, first_line, some
from moslora.processes.devices import device, gpu_module, gpus, local_rank
from moslora.processes.heartbeat import SILENCE, Heartbeat
from moslora.processes.launch import LAUNCHED_HERE, STOPPED, launched, place

Found = TypeVar("Found")

TIMEOUT = timedelta(hours=3)
"""How long a process waits for the others: while they download and encode, and later load and save. Once they have met,
one that gives no sign of life is given up after :data:`moslora.processes.heartbeat.SILENCE`."""

_met = threading.Event()
"""Set once this process has gone to meet the others: a later fault is not for the meeting."""


class Lost(MosloraError):
    """Another process has ended."""


class Shared(UsageError):
    """A fault that all processes know."""


@contextmanager
def meeting(facts: Mapping[str, Any], *, then: str) -> Iterator[None]:
    """The group of all processes, once each has come with the same ``facts``; nothing for a process by itself.

    Whatever uses the group must have been let go of when the block ends. ``facts`` are JSON values by what they are
    called; ``then`` says how to go on if a process is lost. :func:`take_gpu` comes before.

    Raises:
        Shared: they found different things, or some had a fault before.
        Lost: another process ended.
    """
    if not launched():
        yield
        return
    try:
        found = _meet(facts=facts)
        hosts = [each["host"] for each in found]
        heartbeat = Heartbeat(rank=place()[0], size=len(hosts), lose=partial(_lose, hosts=hosts, then=then))
        gathered(None)  # so that each has given a first sign
        heartbeat.start()
        if len(found) > 1:
            machines, kind = len({*hosts}), "GPUs" if gpus() else "CPUs"
            say(f"{len(found)} processes on {machines} machine{'s' * (machines != 1)}, on {kind}")
        yield
        heartbeat.end()
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise Lost(f"another process has ended: {first_line(error).partition('. ')[0]}; {then}") from None
    # Not after a fault: it may wait for the others. DDP goes first: as the last that refers to the group it would
    # destroy it with Python's lock in hand, for which the group's own thread may be waiting.
    gc.collect()
    dist.destroy_process_group()


def take_gpu() -> None:
    """Makes this process's GPU the current one. It comes before anything else that may reach a GPU: Triton launches on
    the current one, and on a GPU that is another process's torch would leave some hundred MB.

    Raises:
        UsageError: more processes than GPUs.
    """
    _check_gpus()
    if gpus():
        gpu_module().set_device(device())


def members() -> tuple[int, int]:
    """This process's rank in the group, and the size of the group; ``(0, 1)`` without one."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gathered(value: Found) -> list[Found]:
    """The ``value`` of every process, by rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def end(error: Exception) -> NoReturn:
    """Ends this process after a fault, which one of all reports, with its rank and host."""
    text = str(error) if isinstance(error, MosloraError) else "".join(traceback.format_exception(error))
    code = getattr(error, "exit_code", 1)
    if not _met.is_set() and not isinstance(error, Interrupted):
        try:
            _meet(fault=text, exit_code=code)
        except Shared as shared:
            end(shared)
        except (MosloraError, RuntimeError, KeyboardInterrupt):  # no meeting
            pass
    for number in (signal.SIGINT, signal.SIGTERM):  # the launcher may be stopping this process for the same fault
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError, RuntimeError):  # a closed terminal; a store that ended with rank 0
        if _reports(error):
            who = _who(place()[0], socket.gethostname())
            label = "" if code in STOPPED else "error: "
            print("\n".join(f"{label}{who}{line}" for line in text.splitlines()), file=sys.stderr, flush=True)
            if dist.is_initialized():
                _get_default_store().set("moslora/reported", "")
        elif dist.is_initialized() and not isinstance(error, Interrupted):
            # A launcher would stop the one that reports, if this process ended first, or not know that one was killed.
            _get_default_store().wait(["moslora/reported"], timedelta(seconds=20))
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(code)  # the interpreter's end would wait for the group


def _lose(ranks: list[int], *, hosts: Sequence[str], then: str) -> NoReturn:
    """Ends this process, whatever it waits for, as those of ``ranks`` are lost. One of those that remain says so."""
    remaining = [rank for rank in range(len(hosts)) if rank not in ranks]
    who, reports = some([f"rank {rank} on {hosts[rank]}" for rank in ranks]), remaining[0] == place()[0]
    if len(ranks) == len(hosts) - 1 > 1:  # or where they leave their signs is lost, and all of them remain
        who, reports = "any other process", local_rank() == 0
    if reports:
        fault = f"no sign of life from {who} for {SILENCE / 60:g} minutes: it was stopped, or its machine is gone"
        with suppress(OSError):  # of a terminal that is gone
            print(f"error: {fault}; {then}", file=sys.stderr, flush=True)
    os._exit(Lost.exit_code)


def _reports(error: Exception) -> bool:
    """Whether this process reports a fault: rank 0 what all know, otherwise the first to claim it."""
    if isinstance(error, (Interrupted, Lost, Shared)) and place()[0]:
        return False
    if isinstance(error, Lost) and LAUNCHED_HERE in os.environ:  # the launcher does
        return False
    return not dist.is_initialized() or _get_default_store().add("moslora/reports", 1) == 1


def _meet(**found: Any) -> list[dict[str, Any]]:
    """Forms the group, once all have come. Returns what each has found, by rank: all the same, and none a fault."""
    _met.set()
    try:
        socket.getaddrinfo(os.environ["MASTER_ADDR"], None)  # torch would ask for it for three hours
        with ThreadPool(1) as pool:  # torch's waiting does not end at a signal
            backend = "cpu:gloo,cuda:nccl" if gpus() else "gloo"
            pool.apply(dist.init_process_group, (backend,), {"timeout": TIMEOUT})
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        kind = Lost if int(os.environ.get("LOCAL_RANK", 0)) else MosloraError  # one of each machine reports it
        raise kind(
            f"the processes cannot meet at MASTER_ADDR:MASTER_PORT ({first_line(error)}); choose the machine of rank 0"
            " and a free port there"
        ) from None
    compare(all_found := gathered({"host": socket.gethostname(), **found}))
    return all_found


def compare(found: list[dict[str, Any]]) -> None:
    """Refuses faults, each once, or else facts that are not the same as on rank 0, by a `Shared`.

    ``found`` has, by rank, ``host`` and either ``facts`` or ``fault`` and ``exit_code``.
    """
    faults: dict[str, str] = {}
    for rank, each in enumerate(found):
        if "fault" in each:
            faults.setdefault(each["fault"], _who(rank, each["host"]))
    if faults:
        shared = Shared("\n".join(f"{who}{line}" for text, who in faults.items() for line in text.splitlines()))
        shared.exit_code = next(each["exit_code"] for each in found if "fault" in each)
        raise shared
    usual = found[0]["facts"]
    differ = [
        f"{_who(rank, each['host'])}{name} is {json.dumps(value)}, but {json.dumps(usual.get(name))} on rank 0"
        for rank, each in enumerate(found)
        for name in usual | each["facts"]
        if (value := each["facts"].get(name)) != usual.get(name)
    ]
    advice = "all processes need the same recipe, rows, base, packages and run folder (a shared one, or a copy on each)"
    if differ:
        raise Shared(f"{capped(differ)}\n{advice}")


def _who(rank: int, host: str) -> str:
    return f"rank {rank} on {host}: " if rank else ""


def _check_gpus() -> None:
    """Refuses more processes on this machine than it has GPUs: two on one would run out of memory, or hang."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or place()[1])
    if here > gpus() > 0:
        raise UsageError(
            f"{here} processes on this machine, but {counted(gpus(), 'GPU')} that this one sees; start {gpus()}"
            " (--processes, --num_processes, --nproc-per-node or --ntasks-per-node), and have each see all of the"
            " machine's (SLURM: --gpus-per-node, not --gpus-per-task)"
        )
    if here < gpus():
        note(f"GPUs in use: {here} of {gpus()}; start {gpus()} processes to use all")
