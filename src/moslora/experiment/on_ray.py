"""Runs of an experiment as Ray tasks, on this machine or a cluster.

Every machine needs the same moslora, and the working folder and the experiment's under the same path: a run goes on
from its folder, wherever it is begun again.
"""

import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from moslora.errors import MosloraError, first_line, needing
from moslora.experiment.file import PlannedRun
from moslora.experiment.one_run import run_one
from moslora.training.launch import worker_processes


def refuse_missing_ray() -> None:
    """Refuse to start if Ray is not installed, before anything is written."""
    with needing("ray", "--on ray"):
        import ray  # noqa: F401


@contextmanager
def on_ray(runs: Sequence[PlannedRun], *, out: Path) -> Iterator[list[Callable[[], None]]]:
    """Start ``runs``, as many at once as fit, and yield for each a function that waits for it.

    A run has one process and one GPU, or in a cluster without GPUs, a core for each of its processes. If the block ends
    early, unfinished runs save and end first.
    """
    with _cluster() as ray:
        cores = max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes())
        gpus = int(ray.cluster_resources().get("GPU", 0) > 0)
        task = ray.remote(num_gpus=gpus, max_retries=10)(_run)
        started = []
        for planned in runs:
            processes = 1 if gpus else max(1, min(worker_processes(planned.recipe.training), cores))
            named = task.options(name=planned.name, num_cpus=processes)
            started.append(named.remote(planned, out=out, folder=os.getcwd(), processes=processes))
        try:
            yield [partial(_wait, ray, each, planned.name) for each, planned in zip(started, runs, strict=True)]
        finally:
            for each in started:
                ray.cancel(each)  # as by Ctrl-C; no effect on a finished run
            ray.wait(started, num_returns=len(started))


@contextmanager
def _cluster() -> Iterator[Any]:
    """Yield Ray, connected to the cluster at RAY_ADDRESS, or to a new one on this machine."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(include_dashboard=False, logging_level=logging.WARNING)
    except (OSError, RuntimeError, ValueError) as error:
        raise MosloraError(
            f"--on ray: {first_line(error)}; set RAY_ADDRESS to a running cluster, or unset it"
        ) from None
    signal.signal(signal.SIGTERM, terminate)  # Ray's own would end this process before the runs have saved
    try:
        yield ray
    finally:
        ray.shutdown()


def _run(planned: PlannedRun, *, out: Path, folder: str, processes: int) -> tuple[str, int] | None:
    """Run one run in a worker. Return message and exit code of a failure, which Ray would wrap in a traceback."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # Ray blocks it, also for child processes
    os.environ["OMP_NUM_THREADS"] = "1"  # for each process; Ray sets the number for all together
    os.chdir(folder)
    try:
        run_one(planned, out=out, processes=processes)
    except MosloraError as fault:
        return str(fault), fault.exit_code
    return None


def _wait(ray: Any, started: Any, name: str) -> None:
    """Wait for a run in a worker.

    Raises:
        MosloraError: the run failed, or its workers were lost too often.
    """
    try:
        failure = ray.get(started)
    except ray.exceptions.RayError as error:
        raise MosloraError(f"{name}: {first_line(error)}; repeat the command to continue") from None
    if failure:
        message, exit_code = failure
        fault = MosloraError(message)
        fault.exit_code = exit_code
        raise fault
