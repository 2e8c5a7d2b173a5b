"""One run of an experiment, done once, and what is kept of it.

``runs/NAME/``           its run folder, NAME = arm-rate-seed; without checkpoints once its result is kept
``rates/NAME.json``      the validation loss of a run that only chooses the rate
``results/NAME.json``    the answers of a scored run
``diverged/NAME.json``   instead of these answers: the training of a scored run ended with a loss that was not finite

A run with a file in one of the last three is done, and needs no folder.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from moslora.compare.answers import RESULTS, Outcomes, collect, read_outcomes, write_outcomes
from moslora.console import note
from moslora.errors import Diverged
from moslora.evaluation.target import evaluate_target, open_target
from moslora.experiment.file import Planned
from moslora.experiment.provenance import provenance
from moslora.experiment.rates import RateResult, rate_file, read_rate, validation_loss
from moslora.files import write_json, write_text
from moslora.processes.devices import free_memory
from moslora.runs.find import RESULT, run_facts
from moslora.runs.manifest import RECIPE
from moslora.training.launch import train_in_processes

BEGUN = "begun.json"
"""In a run's folder: its provenance when it began."""

DIVERGED = "diverged"
"""The folder of the runs without answers in an experiment's."""


def run_folder(out: Path, planned: Planned) -> Path:
    return out / "runs" / planned.name


def result_file(out: Path, planned: Planned) -> Path:
    """The small file that says that the run is done."""
    if not planned.scored:
        return rate_file(out, planned.arm, planned.learning_rate, planned.seed)
    diverged = out / DIVERGED / f"{planned.name}.json"
    return diverged if diverged.exists() else out / RESULTS / diverged.name


def read_result(file: Path) -> Outcomes | RateResult | None:
    """What the small file of a run says; ``None`` if there is none."""
    if file.parent.name != RESULTS:
        return read_rate(file)
    return read_outcomes(file) if file.exists() else None


@contextmanager
def one_by_one(runs: Sequence[Planned], *, out: Path) -> Iterator[list[Callable[[], None]]]:
    """What does each of ``runs``."""
    yield [partial(run_one, planned, out=out) for planned in runs]


def run_one(planned: Planned, *, out: Path, processes: int | None = None) -> None:
    """Trains, or goes on training, scores if the run is to be scored, and writes its small file.

    Whatever was done before it was stopped is not done again. ``processes`` train; the default is this machine's.
    """
    folder, result = run_folder(out, planned), result_file(out, planned)
    made_with, recipe = _begin(planned, folder), planned.recipe.model_dump(mode="json")
    trust = planned.recipe.model.trust_remote_code  # which a stored recipe cannot grant
    diverged = False
    if not (folder / RESULT).is_dir():
        try:
            again = [str(folder), "--resume", *["model.trust_remote_code=true"] * trust]
            train_in_processes(again, processes=processes)
        except Diverged:
            note(f"{planned.name} diverged; the experiment goes on without it")
            diverged = True
    if planned.scored and not diverged:
        _, scores = evaluate_target(open_target(str(folder), trust_remote_code=trust))
        free_memory()  # the next run trains in another process
        outcomes = replace(collect(scores, recipe=recipe, facts=run_facts(folder)), provenance=made_with)
        result.parent.mkdir(parents=True, exist_ok=True)
        write_outcomes(result, outcomes)
    else:
        result = out / DIVERGED / result.name if planned.scored else result
        result.parent.mkdir(parents=True, exist_ok=True)
        write_json(result, asdict(RateResult(None if diverged else validation_loss(folder), recipe, made_with)))
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _begin(planned: Planned, folder: Path) -> dict[str, str]:
    """Makes the folder of a run that has none. Returns the provenance of its beginning."""
    if not (folder / RECIPE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / BEGUN, provenance(planned.recipe))
        write_text(folder / RECIPE, planned.recipe.to_yaml())
    made_with: dict[str, str] = json.loads((folder / BEGUN).read_bytes())
    return made_with
