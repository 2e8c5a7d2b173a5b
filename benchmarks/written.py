"""Shared by the benchmarks: paired times, and tables that are written into a document."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

PART = "part: "
"""What the names of parts begin with that `operations.Watched` gives to torch's profiler."""


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one call, including the device's work."""
    wait()
    began = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - began


def alternate(
    one: Callable[[], object], other: Callable[[], object], *, repetitions: int, warmup: int
) -> tuple[list[float], list[float]]:
    """Times two functions in turns, the first one changing, so that whatever slows the machine slows both.

    Args:
        one: called ``warmup + repetitions`` times, as is ``other``.
        repetitions: those that count.
        warmup: those before.

    Returns:
        The seconds of each, pair by pair.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for n in range(warmup + repetitions):
        turns = [(one, times[0]), (other, times[1])]
        if n % 2 == 0:
            turns.reverse()
        for run, measured in turns:
            took = seconds(run)
            if n >= warmup:
                measured.append(took)
    return times


def in_process(*command: str) -> dict[str, Any]:
    """What a Python program with these arguments prints last, JSON: a process of its own for each measurement.

    Raises:
        RuntimeError: it failed; the end of what it said.
    """
    quiet = os.environ | {"TQDM_DISABLE": "1"}
    ran = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, env=quiet)
    if ran.returncode:
        raise RuntimeError(f"{' '.join(command[1:])}: {ran.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def spread(values: Sequence[float], *, digits: int = 2) -> str:
    """Median and quartiles."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    low, median, high = (f"{x:.{digits}f}" for x in statistics.quantiles(values, n=4, method="inclusive"))
    return f"{median} ({low}–{high})"


def markdown(rows: Sequence[Sequence[str]], *, numbers: bool = False) -> str:
    """A table, header first; ``numbers`` are aligned on the right, in all columns but the first."""
    columns = len(rows[0])
    rule = "|" + "---|" * columns
    if numbers:
        rule = "| --- |" + " --: |" * (columns - 1)
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], rule, *lines[1:]])


def write_between(path: Path, name: str, text: str) -> None:
    """Puts ``text`` between the comments ``<!-- name -->`` and ``<!-- /name -->`` of a document.

    Raises:
        ValueError: they are not there, once each and in this order.
    """
    begin = f"<!-- {name} -->"
    end = f"<!-- /{name} -->"
    document = path.read_text(encoding="utf-8")
    head, found, rest = document.partition(begin)
    _, found_end, tail = rest.partition(end)
    if not (found and found_end) or begin in rest or end in tail:
        raise ValueError(f"{path}: must contain {begin} and {end} once each, in this order")
    path.write_text(f"{head}{begin}\n\n{text}\n\n{end}{tail}", encoding="utf-8")


def publish(text: str, page: Path, name: str, *, print_only: bool) -> None:
    """Prints ``text``, and unless told otherwise puts it between the comments of that name."""
    print(text)
    if not print_only:
        write_between(page, name, text)
        print(f"written to {page}")


def machine() -> str:
    """The device and the version of torch, in one line."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        from moslora.training.run_card import processor  # not at the top: a timed process loads no more than it needs

        device = f"{processor()}, {torch.get_num_threads()} of {os.cpu_count()} cores"
    return f"{device}; torch {torch.__version__}"


def wait() -> None:
    """Until the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def reset_peak() -> None:
    """Has torch measure the peak of a GPU's memory from here on."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def kernels(work: Callable[[], object], parts: Counter[str] | None = None) -> list[tuple[str, float]]:
    """Name and seconds of each CUDA kernel of ``work``; on a CPU of its operations. ``parts`` gets the seconds of those
    that `operations.Watched` has named."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = torch.cuda.is_available()
    # Names are recorded with the host's activity alone, also for a GPU's kernels.
    activities = [ProfilerActivity.CPU]
    if on_gpu:
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiled:
        work()
        wait()
    found = []
    for event in profiled.events() or []:
        on_host = event.device_type.name == "CPU"
        name = event.name.removeprefix(PART)
        if name != event.name:
            if on_host and parts is not None:
                parts[name] += (event.device_time_total if on_gpu else event.cpu_time_total) / 1e6
        elif on_host != on_gpu and not (on_gpu and event.is_user_annotation):  # a span over kernels
            found.append((event.name, (event.device_time_total if on_gpu else event.self_cpu_time_total) / 1e6))
    return found
