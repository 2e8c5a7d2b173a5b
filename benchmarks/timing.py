"""Wall time of calls, alone or in turns, and a device's time by kernel."""

import time
from collections.abc import Callable

import torch


def seconds(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Time of one call by this clock, by default wall time, including the device's work."""
    wait()
    began = clock()
    run()
    wait()
    return clock() - began


def alternate(*runs: Callable[[], object], repetitions: int, warmup: int) -> list[list[float]]:
    """Times functions in turns, the first one changing, so that whatever slows the machine slows all.

    Args:
        runs: each is called ``warmup + repetitions`` times.
        repetitions: those that count.
        warmup: those before.

    Returns:
        The seconds of each, round by round.
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
    """Until the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def reset_peak() -> None:
    """Has torch measure the peak of a GPU's memory from here on."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def kernels(work: Callable[[], object]) -> list[float]:
    """Seconds of each CUDA kernel of ``work``; on a CPU of its operations."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiled:
        work()
        wait()
    events = profiled.events() or []
    if not on_gpu:
        return [event.self_cpu_time_total / 1e6 for event in events]
    on_device = [event for event in events if event.device_type.name != "CPU" and not event.is_user_annotation]
    return [event.device_time_total / 1e6 for event in on_device]
