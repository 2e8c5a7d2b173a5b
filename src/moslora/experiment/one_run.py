"""A single run of an experiment: its place on disk, its state, and how it is trained and scored.

A run is in ``runs/NAME`` of the experiment's folder, where NAME is arm-rate-seed, or is a row of the tables there
(`moslora.compare.tables`). In its ``run.json``, ``experiment`` holds its state, the time of its start and its
provenance (`moslora.experiment.provenance`). Once it is done its checkpoints are deleted. Its adapter may be deleted,
too: the experiment needs only its recipe, ``run.json``, metrics and evaluation. `moslora.experiment.study` says which
runs there are.
"""

import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from moslora.compare.tables import FinishedRun, read_tables
from moslora.console import LABEL, note
from moslora.convert.strength import write_at_strength
from moslora.errors import Diverged, MosloraError, UsageError
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.target import open_target
from moslora.experiment.file import PlannedRun
from moslora.experiment.provenance import RECORDED, provenance
from moslora.files import discard, replacing, write_text
from moslora.processes.devices import free_memory, gpus
from moslora.processes.launch import LAUNCHED_HERE, PART, launch
from moslora.runs.absolute_paths import with_absolute_paths
from moslora.runs.evaluation import read_complete
from moslora.runs.manifest import RECIPE, read_manifest
from moslora.runs.run import CHECKPOINTS, METRICS, Run
from moslora.runs.strength import strength_of
from moslora.strength.curve import STRENGTHS, read_curve
from moslora.strength.measure import measure_strength
from moslora.training.launch import train_in_processes, worker_processes
from moslora.training.session import close

RUN_FOLDERS = "runs"
"""Name of the folder with an experiment's runs."""

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""Environment variable that names the GPUs of a process."""


def planned_run(out: Path, planned: PlannedRun) -> Run:
    """Return a planned run as a `Run` in the experiment's folder ``out``, where it need not exist."""
    return Run(out / RUN_FOLDERS / planned.name)


def recorded_provenance(run: Run) -> dict[str, Any]:
    """Return the provenance that was recorded when the run was started (`moslora.experiment.provenance`)."""
    return {key: value for key, value in run.facts.get("experiment", {}).items() if key in RECORDED}


def packed_run(out: Path, planned: PlannedRun) -> FinishedRun | None:
    """Return a run's row in the tables of the experiment's folder ``out``; ``None`` if it has none.

    For a run that is to be scored, only a row of a scored run counts.
    """
    key = (planned.arm, planned.recipe.training.learning_rate, planned.recipe.seed)
    for row in read_tables(out):
        if row.key == key and (row.role == "scored" or not planned.scored):
            return row
    return None


def finished_run(out: Path, planned: PlannedRun) -> FinishedRun | None:
    """Return a run that is done; ``None`` if it is not done.

    A run in a folder is without its answers, which `answered_run` reads.
    """
    row = packed_run(out, planned)
    if row is not None:
        return row
    run = planned_run(out, planned)
    facts = run.facts
    of_experiment = facts.get("experiment", {})
    state = of_experiment.get("state")
    if state not in ("scored", "diverged") and (planned.scored or state != "trained"):
        return None
    strength = strength_of(facts)
    losses = [row["validation_loss"] for row in run.metrics if row.get("validation_loss") is not None]
    return FinishedRun(
        arm=planned.arm,
        rate=planned.recipe.training.learning_rate,
        seed=planned.recipe.seed,
        role="scored" if planned.scored else "searched",
        validation_loss=run.validation_loss,
        lowest_loss=min(losses, default=None),
        seconds=facts.get("seconds") if planned.strength is None else None,
        diverged=state == "diverged",
        parameters=facts.get("trainable_parameters"),
        device=facts.get("hardware", {}).get("device"),
        begun=of_experiment.get("begun"),
        strength=strength.value if strength else None,
    )


def answered_run(out: Path, planned: PlannedRun) -> FinishedRun | None:
    """Return a run that is done, with its answers to the planned questions; ``None`` if it is not done."""
    row = finished_run(out, planned)
    if row is None or row.evaluation is not None or row.diverged or not planned.scored:
        return row
    evaluation = read_complete(planned_run(out, planned).evaluation_folder())
    return replace(row, evaluation=evaluation.planned_by(planned.recipe))


def loss_of(row: FinishedRun) -> float:
    """Return the validation loss of a run's result; infinite if it was not finite, or there is none."""
    if row.diverged or row.validation_loss is None:
        return math.inf
    return row.validation_loss


@contextmanager
def run_locally(runs: Sequence[PlannedRun], *, out: Path) -> Iterator[list[Callable[[], None]]]:
    """Yield a function for each of ``runs`` that returns once the run is done.

    With several GPUs, each GPU has a run at a time, by processes that see this GPU alone. Otherwise runs follow one
    another. If the block ends early, unfinished runs save first.
    """
    count = gpus()
    if count < 2:
        yield [partial(run_one, planned, out=out) for planned in runs]
        return
    free = os.environ.get(VISIBLE, ",".join(map(str, range(count)))).split(",")[:count]

    def on_gpu(planned: PlannedRun) -> None:
        gpu = free.pop()
        try:
            run_one(planned, out=out, environment={VISIBLE: gpu, LABEL: f"{planned.name}: ", PART: "1", "TERM": "dumb"})
        finally:
            free.append(gpu)

    with ThreadPoolExecutor(count) as pool:
        try:
            yield [pool.submit(on_gpu, planned).result for planned in runs]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in psutil.Process().children():
                with suppress(psutil.Error):  # it has ended, or belongs to another user
                    if child.environ().get(LAUNCHED_HERE) == str(os.getpid()):
                        child.send_signal(signal.SIGINT)


def run_one(
    planned: PlannedRun, *, out: Path, processes: int | None = None, environment: Mapping[str, str] | None = None
) -> None:
    """Train a run, or write it from another run's adapter, and score it if planned. Continue where it was stopped.

    Args:
        planned: run to do.
        out: folder of the experiment.
        processes: number of processes that train; by default that of `worker_processes`.
        environment: environment variables of the processes that train and score; without any, this process scores.
    """
    run = planned_run(out, planned)
    if not run.exists:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        run.add_facts(experiment={**provenance(planned), "begun": now, "state": "begun"})
        write_text(run.path / RECIPE, with_absolute_paths(planned.recipe).to_yaml())
    trust = planned.recipe.model.trust_remote_code  # a stored recipe cannot grant it
    state = "scored" if planned.scored else "trained"
    try:
        if run.finished:
            close(run)
        elif planned.strength is not None:
            _apply(planned, Run(out / RUN_FOLDERS / planned.source), run)
        else:
            arguments = [str(run.path), "--resume"]
            if trust:
                arguments.append("model.trust_remote_code=true")
            processes = processes or worker_processes(planned.recipe.training)
            train_in_processes(arguments, out=run.path, processes=processes, environment=environment)
        if planned.scored and environment:
            command = [sys.executable, "-m", "moslora", "eval", str(run.path)]
            if trust:
                command.append("--trust-remote-code")
            if launch(command, processes=1, then="the same command continues", environment=environment):
                raise MosloraError(f"{planned.name}: it was not scored; the lines above say why")
        elif planned.scored:
            evaluate_target(open_target(str(run.path), trust_remote_code=trust))
            free_memory()  # the next run trains in another process
    except Diverged:
        note(f"{planned.name} diverged; the experiment goes on without it")
        state = "diverged"  # a result as well
    discard(run.path / CHECKPOINTS)  # before its state says that it is done, after which nothing is deleted
    run.add_facts(experiment={"state": state})


def _apply(planned: PlannedRun, source: Run, run: Run) -> None:
    """Write the adapter of ``source`` at the planned strength into ``run``, whose own ``experiment`` facts are kept.

    Raises:
        Diverged: ``source`` diverged.
        UsageError: ``source`` has no adapter, or one without a strength.
    """
    if source.facts.get("experiment", {}).get("state") == "diverged":
        raise Diverged(source.name)
    if not source.finished:
        raise UsageError(f"{planned.name}: needs the adapter of {source.path}, which is gone; train it again")
    trust = planned.recipe.model.trust_remote_code
    curve = read_curve(source)
    if curve is None and planned.recipe.data.holds_out:
        curve = measure_strength(source.result, trust_remote_code=trust)
        free_memory()
    strength = planned.strength
    if not isinstance(strength, float):
        strength = (curve and curve.recommended) or 1.0
    of_experiment = run.facts["experiment"]
    with replacing(run.path) as new:
        write_at_strength(source.result, strength, new, trust_remote_code=trust)
        Run(new).add_facts(experiment=of_experiment)
        if curve is not None and strength in STRENGTHS:
            loss = float(curve.loss.means[STRENGTHS.index(strength)])
            step = read_manifest(source.result)["step"]
            write_text(new / METRICS, json.dumps({"step": step, "validation_loss": loss}) + "\n")
