"""One run of an experiment, done once.

It lies in ``runs/NAME`` of the experiment's folder, NAME = arm-rate-seed, or is a row of the tables there
(`moslora.compare.tables`). Its ``run.json`` has under ``experiment`` its state, when it was begun, and the hashes of
what it was begun with (`moslora.experiment.provenance`). Once it is done its checkpoints go, and its adapter may: the
experiment needs its recipe, ``run.json``, metrics and evaluation.
"""

import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
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
from moslora.runs.evaluation import Evaluation, read_complete
from moslora.runs.manifest import RECIPE, read_manifest
from moslora.runs.run import CHECKPOINTS, METRICS, Run
from moslora.runs.strength import strength_of
from moslora.strength.curve import STRENGTHS, read_curve
from moslora.strength.measure import measure_strength
from moslora.training.launch import train_in_processes, worker_processes
from moslora.training.session import close

RUN_FOLDERS = "runs"
"""The folder of an experiment that holds its runs."""

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""The variable that names the GPUs which a process sees."""


def planned_run(out: Path, planned: PlannedRun) -> Run:
    """The run in the experiment's folder ``out``."""
    return Run(out / RUN_FOLDERS / planned.name)


def made_with(run: Run) -> dict[str, Any]:
    """What its recipe does not say, as it was recorded when the run was begun (`moslora.experiment.provenance`)."""
    return {key: value for key, value in run.facts.get("experiment", {}).items() if key in RECORDED}


def packed_run(out: Path, planned: PlannedRun) -> FinishedRun | None:
    """The row of a run in the tables of the experiment's folder ``out``; ``None`` if it is not there, or is to be
    scored and was not."""
    key = (planned.arm, planned.recipe.training.learning_rate, planned.recipe.seed)
    for row in read_tables(out):
        if row.key == key and (row.role == "scored" or not planned.scored):
            return row
    return None


def finished_run(out: Path, planned: PlannedRun) -> FinishedRun | None:
    """What is known of a run, of one outside the tables without its answers (`planned_answers`); ``None`` if it is not
    done."""
    row = packed_run(out, planned)
    if row is not None:
        return row
    run = planned_run(out, planned)
    facts = run.facts
    made = facts.get("experiment", {})
    state = made.get("state")
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
        begun=made.get("begun"),
        strength=strength.value if strength else None,
    )


def planned_answers(out: Path, planned: PlannedRun) -> Evaluation | None:
    """The answers of a run to the planned questions, as it may have been asked more; ``None`` if it has none."""
    row = finished_run(out, planned)
    if row is None:
        return None
    if row.evaluation is not None or row.diverged or not planned.scored:
        return row.evaluation
    return read_complete(planned_run(out, planned).evaluation_folder()).planned_by(planned.recipe)


def loss_of(row: FinishedRun) -> float:
    """The validation loss of a run's result; infinite if it was not finite, or there is none."""
    if row.diverged or row.validation_loss is None:
        return math.inf
    return row.validation_loss


@contextmanager
def run_locally(runs: Sequence[PlannedRun], *, out: Path) -> Iterator[list[Callable[[], None]]]:
    """Yields a function for each of ``runs``, which returns once that run is done: one at a time, or on a machine with
    several GPUs as many at once, each by processes that see one of them. If the block ends early, those save first."""
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
                with suppress(psutil.Error):  # it has ended, or is another user's
                    if child.environ().get(LAUNCHED_HERE) == str(os.getpid()):
                        child.send_signal(signal.SIGINT)


def run_one(
    planned: PlannedRun, *, out: Path, processes: int | None = None, environment: Mapping[str, str] | None = None
) -> None:
    """Trains, or goes on training, or applies what another run has trained, and scores if the run is to be scored.

    Whatever was done before it was stopped is not done again. ``processes`` train; the default is `worker_processes`.
    Those of another ``environment`` also score; otherwise this one does.
    """
    run = planned_run(out, planned)
    if not run.exists:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        run.add_facts(experiment={**provenance(planned), "begun": now, "state": "begun"})
        write_text(run.path / RECIPE, with_absolute_paths(planned.recipe).to_yaml())
    trust = planned.recipe.model.trust_remote_code  # which a stored recipe cannot grant
    reached = "scored" if planned.scored else "trained"
    try:
        if run.finished:
            close(run)
        elif planned.strength is not None:
            _apply(planned, Run(out / RUN_FOLDERS / planned.source), run)
        else:
            again = [str(run.path), "--resume"]
            if trust:
                again.append("model.trust_remote_code=true")
            processes = processes or worker_processes(planned.recipe.training)
            train_in_processes(again, out=run.path, processes=processes, environment=environment)
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
        reached = "diverged"  # its loss was not finite, which is a result, too
    discard(run.path / CHECKPOINTS)  # first: once its state says that it is done, nobody looks into the run again
    run.add_facts(experiment={"state": reached})


def _apply(planned: PlannedRun, source: Run, run: Run) -> None:
    """Writes the adapter of ``source`` at the planned strength into ``run``, which keeps what was recorded of it.

    Raises:
        Diverged: ``source`` has.
        UsageError: its adapter is not there, or has no strength.
    """
    if source.facts.get("experiment", {}).get("state") == "diverged":
        raise Diverged(source.name)
    if not source.finished:
        raise UsageError(f"{planned.name}: is made of the adapter of {source.path}, which is not there; train it again")
    trust = planned.recipe.model.trust_remote_code
    curve = read_curve(source)
    if curve is None and planned.recipe.data.holds_out:
        curve = measure_strength(source.result, trust_remote_code=trust)
        free_memory()
    strength = planned.strength
    if not isinstance(strength, float):
        strength = (curve and curve.recommended) or 1.0
    made = run.facts["experiment"]
    with replacing(run.path) as new:
        write_at_strength(source.result, strength, new, trust_remote_code=trust)
        Run(new).add_facts(experiment=made)
        if curve is not None and strength in STRENGTHS:
            loss = float(curve.loss.means[STRENGTHS.index(strength)])
            step = read_manifest(source.result)["step"]
            write_text(new / METRICS, json.dumps({"step": step, "validation_loss": loss}) + "\n")
