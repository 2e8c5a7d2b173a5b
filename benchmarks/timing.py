"""Timing of calls, alone or in turns, and of a device's kernels."""

import time
from collections import Counter
from collections.abc import Callable

import torch

PART = "part: "
"""Prefix of the part names that `operations.Watched` gives to torch's profiler."""


def seconds(run: Callable[[], object]) -> float:
    """Seconds of one call by the clock, including the device's work."""
    wait()
    began = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - began


def alternate(*runs: Callable[[], object], repetitions: int, warmup: int) -> list[list[float]]:
    """Time functions in alternating turns, so that other load slows all alike.

    Args:
        runs: functions, each called ``warmup + repetitions`` times.
        repetitions: number of timed calls.
        warmup: number of calls before.

    Returns:
        The seconds of each function, round by round.
    """
    times: list[list[float]] = [[] for _ in runs]
    for number in range(warmup + repetitions):
        turns = list(zip(runs, times, strict=True))
        if number % 2 == 0:
            turns.reverse()
        for run, measured in turns:
            measured.append(seconds(run))
    return [measured[warmup:] for measured in times]


def wait() -> None:
    """Wait until the device has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def reset_peak() -> None:
    """Reset torch's record of the peak of a GPU's memory."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def kernels(work: Callable[[], object], parts: Counter[str] | None = None) -> list[tuple[str, float]]:
    """Name and seconds of each CUDA kernel of ``work``, or of its operations on a CPU.

    ``parts`` gets the seconds of the parts that `operations.Watched` has named.
    """
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
        took = event.device_time_total if on_gpu else event.cpu_time_total
        if event.name.startswith(PART):
            if on_host and parts is not None:
                parts[event.name.removeprefix(PART)] += took / 1e6
        elif on_host and not on_gpu:
            found.append((event.name, event.self_cpu_time_total / 1e6))
        elif on_gpu and not on_host and not event.is_user_annotation:  # which is a span over kernels
            found.append((event.name, took / 1e6))
    return found
