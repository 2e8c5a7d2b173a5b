"""The processes of one command: they compare what they found, work as a group, and end together.

They meet in a store of torch's, where each puts what it found. The group forms when all found the same; so nobody waits
in it for a download. A fault of one is the fault of all, and one of them tells of it: the first to claim it.
"""

import functools
import gc
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch.distributed as dist

from moslora.console import note, say
from moslora.errors import Interrupted, MosloraError, UsageError, capped, first_line
from moslora.processes.devices import device, gpu_module, gpus
from moslora.processes.launch import FAULT, LAUNCHED_HERE, launched, place

Found = TypeVar("Found")

TIMEOUT = timedelta(hours=3)
"""How long a process waits for the others: while they download and encode, and later load and save."""

_FACTS, _LEFT = "moslora/facts", "moslora/left"


class Lost(MosloraError):
    """Another process has ended."""


@contextmanager
def meeting(facts: Mapping[str, Any], *, then: str) -> Iterator[None]:
    """The group of all processes, once each has come with the same ``facts``; nothing for a process by itself.

    Whatever uses the group must have been let go of when the block ends.

    Args:
        facts: what this process found, JSON values by what they are called.
        then: how to go on if a process is lost.

    Raises:
        UsageError: they found different things, or there are more processes than GPUs.
        Lost: another process ended.
    """
    if not launched():
        if gpus() > 1:
            note(f"1 of {gpus()} GPUs is used; --processes {gpus()} uses all")
        yield
        return
    _refuse_too_many()
    rank, size = place()
    hosts = compare(_exchange(facts))
    if size > 1:
        say(f"{size} processes on {hosts} machine{'s' * (hosts != 1)}, each on {'a GPU' if gpus() else 'the CPU'}")
    if gpus():
        gpu_module().set_device(device())
    try:
        backend = "cpu:gloo,cuda:nccl" if gpus() else "gloo"
        dist.init_process_group(backend, store=_store(), rank=rank, world_size=size, timeout=TIMEOUT)
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise Lost(f"another process has ended: {first_line(error).partition('. ')[0]}; {then}") from None
    # Not after a fault: it may wait for the others. DDP goes first: as the last that refers to the group it would
    # destroy it with Python's lock in hand, for which the group's own thread may be waiting.
    gc.collect()
    dist.destroy_process_group()


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


def compare(found: list[dict[str, Any]]) -> int:
    """Checks that all processes found the same, and counts their machines.

    Args:
        found: by rank, ``host`` and ``facts``.

    Raises:
        UsageError: they differ; a line for each fact, with the ranks that differ from most, or from rank 0.
    """
    faults = []
    for name in dict.fromkeys(key for each in found for key in each["facts"]):
        ranks: dict[str, list[int]] = {}
        for rank, each in enumerate(found):
            ranks.setdefault(json.dumps(each["facts"].get(name)), []).append(rank)
        usual, *others = sorted(ranks, key=lambda value: -len(ranks[value]))  # stable: at a draw, that of rank 0
        for value in others:
            who = ", ".join(f"rank {rank} on {found[rank]['host']}" for rank in ranks[value])
            faults.append(f"{who}: {name} is {value}, but {usual} on rank {ranks[usual][0]}")
    if faults:
        raise UsageError(
            capped(faults) + "\nall processes need the same recipe, rows, base, packages and run folder (a shared one,"
            " or a copy on each machine)"
        )
    return len({each["host"] for each in found})


def end(error: Exception) -> NoReturn:
    """Ends this process after a fault. One of all tells of it, with its rank and host."""
    # The launcher may be stopping this process for the same fault.
    before = [(number, signal.signal(number, signal.SIG_IGN)) for number in (signal.SIGINT, signal.SIGTERM)]
    rank, code = place()[0], getattr(error, "exit_code", 1)
    if _has_the_word(error):
        who = f"rank {rank} on {socket.gethostname()}: " if rank else ""
        if isinstance(error, MosloraError):
            lines = [f"error: {who}{line}" for line in str(error).splitlines()]
        else:  # a bug
            lines = [*([f"{who}"] if who else []), *traceback.format_exception(error)]
        print("\n".join(lines), file=sys.stderr, flush=True)
    if dist.is_initialized():
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(code)  # the interpreter's end would wait for the group
    for number, handler in before:
        signal.signal(number, handler)
    with suppress(Exception, KeyboardInterrupt):
        _leave(code)
    sys.exit(code)


def _has_the_word(error: Exception) -> bool:
    """Whether this process tells of the fault. The main process has a second's lead: what befell all is its to tell."""
    rank, _ = place()
    interrupted = isinstance(error, Interrupted)  # as all are, by the launcher
    if (interrupted and rank) or (isinstance(error, Lost) and LAUNCHED_HERE in os.environ):
        return False
    if rank:
        time.sleep(1)
    try:
        store = _meet(patience=0 if dist.is_initialized() else 30)
        return not store.check([FAULT]) if interrupted else store.add(FAULT, 1) == 1
    except (OSError, RuntimeError, KeyError):
        # No store: it ended with the main process, which has told; or it never was, so that one per machine tells.
        return not dist.is_initialized() and os.environ.get("LOCAL_RANK", "0") == "0"


def _leave(code: int) -> None:
    """Lets those know who still wait for what this process found."""
    rank, size = place()
    store = _meet(patience=0)
    store.set(f"{_FACTS}/{rank}", json.dumps({"host": socket.gethostname(), "exit_code": code}))
    store.add(_LEFT, 1)
    until = time.monotonic() + 60  # they may still be loading their libraries
    while _hosts_store() and store.add(_LEFT, 0) < size and time.monotonic() < until:
        time.sleep(0.05)


def _exchange(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What all processes found, by rank, as soon as all have come."""
    until = time.monotonic() + TIMEOUT.total_seconds()
    rank, size = place()
    try:
        store = _meet(patience=TIMEOUT.total_seconds())
    except (OSError, RuntimeError, KeyError) as error:
        raise MosloraError(
            f"the processes cannot meet at MASTER_ADDR:MASTER_PORT ({first_line(error)}); choose the machine of rank 0"
            " and a free port there"
        ) from None
    store.set(f"{_FACTS}/{rank}", json.dumps({"host": socket.gethostname(), "facts": facts}))
    found = []
    for other in range(size):
        while not store.check([f"{_FACTS}/{other}"]):  # not get(), which would not end at a signal
            if time.monotonic() > until:
                raise MosloraError(f"rank {other} has not come within {TIMEOUT}; see what it printed")
            time.sleep(0.05)
        found.append(json.loads(store.get(f"{_FACTS}/{other}")))
        if code := found[-1].get("exit_code"):
            fault = MosloraError(f"rank {other} on {found[-1]['host']} has ended with exit code {code}")
            fault.exit_code = code
            raise fault
    store.set_timeout(TIMEOUT)
    return found


def _meet(*, patience: float) -> Any:
    """The store of all processes; its host is waited for up to ``patience`` seconds."""
    until = time.monotonic() + patience
    while not _hosts_store():  # TCPStore itself would wait as well, but not end at a signal
        try:
            socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timeout=5).close()
            break
        except OSError as error:
            if isinstance(error, socket.gaierror) or time.monotonic() > until:
                raise
            time.sleep(0.1)
    return _store()


@functools.cache
def _store() -> Any:
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(address, port, is_master=_hosts_store(), wait_for_workers=False)  # type: ignore[attr-defined]


def _hosts_store() -> bool:
    """Whether the store is this process's own. torchrun and :func:`launch` host it themselves."""
    return place()[0] == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def _refuse_too_many() -> None:
    """Refuses more processes on this machine than it has GPUs: two on one would run out of memory, or hang."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ["WORLD_SIZE"])
    if here > gpus() > 0:
        raise UsageError(
            f"{here} processes on this machine, but {gpus()} GPU{'s' * (gpus() != 1)}; start {gpus()}"
            f" (--num_processes {gpus()}, or --nproc-per-node {gpus()})"
        )
    if here < gpus():
        note(f"{here} of {gpus()} GPUs {'is' if here == 1 else 'are'} used; start {gpus()} processes to use all")
