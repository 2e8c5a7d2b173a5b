"""The evaluations that are compared, found at the paths that a user names."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from moslora.compare.compared_run import ComparedRun
from moslora.compare.index import ExperimentIndex, ExperimentRun, read_index
from moslora.compare.logs import log_files, read_logs
from moslora.compare.tables import FinishedRun, read_tables
from moslora.console import note
from moslora.errors import UsageError
from moslora.recipe import Changes, Recipe
from moslora.recipe.recipe import fields_that_change
from moslora.runs.best import result_step
from moslora.runs.evaluation import Evaluation, is_evaluation, read_complete
from moslora.runs.manifest import WEIGHTS, read_manifest
from moslora.runs.origin import predecessor_of
from moslora.runs.run import Run, is_run, result_of
from moslora.runs.strength import STRENGTH, strength_of

ARM_CHANGES = (Changes.TRAINED, Changes.ROWS)
"""Another value of a recipe that changes one of these makes another arm. Its base is known by a fingerprint, and its
rows, wherever they are and however they are read, by a hash of all of them."""


def find(paths: Sequence[Path], *, evaluation: str | None = None, cluster: str | None = None) -> list[ComparedRun]:
    """The evaluations at these paths, in their order. If one is a log of another program, all are.

    Args:
        paths: runs, folders of runs, experiments, or folders of one evaluation; or logs.
        evaluation: name of the evaluation's folder in a run; ``None`` for the only one, or the recipe's.
        cluster: what groups the questions of logs (`read_logs`).
    """
    places = [path.resolve() for path in paths]
    for path, place in zip(paths, places, strict=True):
        if places.count(place) > 1:
            raise UsageError(f"{path}: named twice; a comparison needs two different runs or logs")
    runs: list[ComparedRun] = []
    for path in paths:
        index = read_index(path)
        if is_evaluation(path):
            here = [compared(path)]
        elif index is not None:
            if (len(paths) > 1 or evaluation) and read_tables(path):
                raise UsageError(f"{path}: an experiment in tables is compared alone, without --evaluation")
            here = _of_experiment(path, index, evaluation=evaluation)
        else:
            here = [compared_run(run, evaluation) for run in runs_at(path)]
            if not here and log_files(path):
                return read_logs(paths, cluster=cluster)
        if not here:
            raise UsageError(f"{path}: no evaluated run here")
        runs += here
    if cluster is not None:
        raise UsageError(
            f"--cluster {cluster}: is for logs of other programs; of runs, tasks.NAME.cluster in the recipe says it"
        )
    return runs


def runs_at(path: Path) -> dict[Path, str | None]:
    """The run at ``path``, those in this folder, or an experiment's with the arms that its index names."""
    index = read_index(path)
    folders: dict[Path, str | None] = dict.fromkeys([path] if is_run(path) else sorted(path.glob("*")))
    if index is not None:
        folders = {path / run.folder: run.arm for run in index.runs}
    return {folder: arm for folder, arm in folders.items() if is_run(folder)}


def _of_experiment(path: Path, index: ExperimentIndex, *, evaluation: str | None) -> list[ComparedRun]:
    """The scored runs of an experiment: those in its tables, and those that have a folder, which may be at another
    learning rate now. Says which have no answers, or are missing."""
    rates: dict[str | None, float] = {run.arm: run.learning_rate for run in index.runs}
    rows = [row for row in read_tables(path) if row.role == "scored" and rates.get(row.arm, row.rate) == row.rate]
    runs = []
    for row in rows:
        if row.evaluation is not None:
            of_row = ComparedRun(row.evaluation, path / row.name, seed=row.seed, validation_loss=row.validation_loss)
            runs.append(as_arm(of_row, path, str(row.arm)))
    there = [run for run in index.runs if not run.diverged and is_run(path / run.folder)]
    for run in there:
        runs.append(as_arm(compared_run(path / run.folder, evaluation), path, run.arm, as_planned=not evaluation))
    both: list[FinishedRun | ExperimentRun] = [*rows, *index.runs]
    diverged = [f"{run.arm} with seed {run.seed}" for run in both if run.diverged]
    missing = len(index.runs) - len(there) - sum(run.diverged for run in index.runs)
    if diverged:
        note(f"{path}: diverged, so it has no answers and is left out: {', '.join(diverged)}")
    if missing:
        note(f"{path}: {missing} of {len(index.runs)} runs are missing and left out")
    return runs


def as_arm(run: ComparedRun, experiment: Path, arm: str, *, as_planned: bool = False) -> ComparedRun:
    """``found`` as a run of an experiment's arm, whatever its recipe; ``as_planned`` without what it was asked beyond
    its recipe."""
    evaluation = run.evaluation
    if as_planned and evaluation.run is not None:
        evaluation = evaluation.planned_by(evaluation.run.recipe)
    return replace(run, evaluation=evaluation, name=arm, arm=f"{experiment}: {arm}")


def compared_run(path: Path, evaluation: str | None = None) -> ComparedRun:
    """The run at ``path`` with the evaluation of this name; by default with the only one, or the recipe's."""
    return compared(Run(path).evaluation_folder(evaluation), path=path)


def compared(folder: Path, *, path: Path | None = None) -> ComparedRun:
    """The run with the evaluation in ``folder``, which stands for the run at ``path`` if that is given; with its arm,
    and the rows and steps of its run."""
    evaluation = read_complete(folder)
    run = evaluation.run
    whole = replace(ComparedRun.of(evaluation), path=path or folder)
    if run is None or evaluation.of_base:
        return whole
    recipe = run.recipe
    facts = run.facts
    step = evaluated_step(evaluation, of_result=path is not None)
    chosen = result_step(facts, recipe.training)
    if step not in (None, chosen):
        chosen = None
    made = {"steps": "unknown, as are its rows,"}
    if "imported" not in facts:
        made = _made(recipe, facts, step=step, chosen=chosen)
    base = evaluation.weights.fingerprint if evaluation.weights else None
    arm = arm_key(recipe, facts, base=base)
    loss = run.validation_loss if result_of(folder) == folder else None
    whole = replace(whole, name=run.path.name, arm=arm, seed=recipe.seed, validation_loss=loss)
    return replace(whole, made=made, chosen_step=chosen)


def _made(recipe: Recipe, facts: Mapping[str, Any], *, step: int | None, chosen: int | None) -> dict[str, str]:
    """Field -> value: all rows of the source, and those that a seed has chosen among them; and the step of the adapter,
    or the rule by which validations have ``chosen`` it, so that runs of one rule may have different ones.

    What follows from the seed is a field of its own: training leaves out rows that repeat a validation row, so seeds
    that hold out other duplicates train other numbers of rows, and with epochs of steps.
    """
    values = recipe.model_dump(mode="json")
    data = facts.get("data", {})
    training = recipe.training
    total = facts.get("steps")
    made = {}
    for key in fields_that_change(Changes.ROWS):
        section, _, name = key.partition(".")
        made[key] = str(values[section].get(name))
    by_seed = f".{recipe.seed}" if "source_sha256" in data else ""
    made[f"trained_rows{by_seed}"] = str(facts.get("trained_rows"))
    made["steps"] = str(total if step is None else step)
    if step in (None, total) and training.max_steps is None and by_seed:
        made[f"steps{by_seed}"] = made["steps"]
        made["steps"] = f"{training.epochs:g} epochs"
    if chosen is not None:
        made["steps"] = (
            f"the {training.result} of up to {total}, validated every {training.validate_every} by"
            f" {training.best_by}, patience {training.patience}"
        )
    made[f"rows.{recipe.seed}"] = str(data.get("sha256"))[:8]
    if "source_sha256" in data:
        made["rows"] = data["source_sha256"][:8]
    return made


def evaluated_step(evaluation: Evaluation, *, of_result: bool) -> int | None:
    """The step of the adapter that was evaluated; ``None`` if its run keeps none.

    Raises:
        UsageError: its run has other adapters, or, where it has to be the run's result, that is another one.
    """
    folder = evaluation.folder
    run = Run(folder.parent.parent)
    adapter_hash = evaluation.weights.adapter if evaluation.weights else None
    adapters = [run.result] if of_result and run.finished else run.adapters
    for adapter in adapters:
        manifest = read_manifest(adapter)
        if manifest["sha256"][WEIGHTS] == adapter_hash:
            return manifest.get("step")  # none of an imported one
    checkpoint = re.search(r"-step-(\d+)$", folder.name)
    if checkpoint and not of_result:
        return int(checkpoint[1])  # which was deleted since
    if adapters:
        raise UsageError(
            f"{folder}: scores of other weights than {run.path} has now, perhaps after more training; remove this"
            f" folder and evaluate again: moslora eval {shlex.quote(str(run.path))}"
        )
    return None


def arm_key(recipe: Recipe, facts: Mapping[str, Any], *, base: str | None) -> str:
    """What makes the arm of a run: every value of its recipe that changes a step, but for the seed; a hash of all rows
    of its source; its ``base``, a fingerprint if it is known; the weights that it started with; its
    strength; and with a gate's balance, which each pass takes over its own rows, what cut the passes.
    """
    values = recipe.values_changing(*ARM_CHANGES)
    strength = strength_of(facts)
    if strength is not None:
        values[STRENGTH] = strength.value
    values["source"] = facts.get("data", {}).get("source_sha256")
    values["base"] = base or [recipe.model.name, recipe.model.revision]
    predecessor = predecessor_of(facts)
    values["start"] = predecessor.adapter if predecessor else recipe.adapter.continue_from
    if recipe.adapter.is_balanced:
        values["passes"] = [facts.get("processes"), facts.get("micro_batch_tokens")]
    return json.dumps(values, sort_keys=True)
