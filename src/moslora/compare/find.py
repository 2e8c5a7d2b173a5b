"""Search for the runs, evaluations and logs at the paths that a user names, and what makes two runs one arm.

How logs and tables are read is in `moslora.compare.logs` and `moslora.compare.tables`.
"""

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
"""Marks of the recipe values that make another arm. Base and rows are identified by hashes, not by their places."""


def find_runs(paths: Sequence[Path], *, evaluation: str | None = None, cluster: str | None = None) -> list[ComparedRun]:
    """Return the runs at these paths with their answers, in their order.

    If a path has no runs but logs of other programs, all paths are read as logs.

    Args:
        paths: runs, folders of runs, experiments, or folders of one evaluation; or logs.
        evaluation: name of the evaluation's folder in a run; ``None`` for the only one, or, of several, for the
            one that the recipe describes.
        cluster: column of logs, or path into a row, that groups the questions (`read_logs`).

    Raises:
        UsageError: a path has no evaluated run, two paths lead to one place, or ``cluster`` is given for runs.
    """
    places = [path.resolve() for path in paths]
    for path, place in zip(paths, places, strict=True):
        if places.count(place) > 1:
            raise UsageError(f"{path}: named twice; a comparison needs two different runs or logs")
    runs: list[ComparedRun] = []
    for path in paths:
        index = read_index(path)
        if is_evaluation(path):
            runs_of_path = [compared(path)]
        elif index is not None:
            if (len(paths) > 1 or evaluation) and read_tables(path):
                raise UsageError(f"{path}: a packed experiment must be the only argument, without --evaluation")
            runs_of_path = _runs_of_experiment(path, index, evaluation=evaluation)
        else:
            runs_of_path = [compared_run(run, evaluation) for run in runs_at(path)]
            if not runs_of_path and log_files(path):
                return read_logs(paths, cluster=cluster)
        if not runs_of_path:
            raise UsageError(f"{path}: contains no evaluated run; evaluate one: moslora eval RUN")
        runs += runs_of_path
    if cluster is not None:
        raise UsageError(
            f"--cluster {cluster}: only for logs of other programs; for runs, set tasks.NAME.cluster in the recipe"
        )
    return runs


def runs_at(path: Path) -> dict[Path, str | None]:
    """Return folder -> arm, for the run at ``path``, the runs in this folder, or the runs of an experiment.

    Only an experiment's index names arms; otherwise they are ``None``.
    """
    index = read_index(path)
    folders: dict[Path, str | None] = dict.fromkeys([path] if is_run(path) else sorted(path.glob("*")))
    if index is not None:
        folders = {path / run.folder: run.arm for run in index.runs}
    return {folder: arm for folder, arm in folders.items() if is_run(folder)}


def _runs_of_experiment(path: Path, index: ExperimentIndex, *, evaluation: str | None) -> list[ComparedRun]:
    """Return the scored runs of an experiment, from its tables and from folders. Print diverged and missing runs.

    If an arm also has run folders, it was continued, and only table rows at the learning rate of those folders count.
    """
    rates: dict[str | None, float] = {run.arm: run.learning_rate for run in index.runs}
    rows = [row for row in read_tables(path) if row.role == "scored" and rates.get(row.arm, row.rate) == row.rate]
    runs = []
    for row in rows:
        if row.evaluation is not None:
            run = ComparedRun(row.evaluation, path / row.name, seed=row.seed, validation_loss=row.validation_loss)
            runs.append(as_arm(run, path, str(row.arm)))
    with_answers = [each for each in index.runs if not each.diverged and is_run(path / each.folder)]
    for each in with_answers:
        runs.append(as_arm(compared_run(path / each.folder, evaluation), path, each.arm, as_planned=not evaluation))
    scored: list[FinishedRun | ExperimentRun] = [*rows, *index.runs]
    diverged = [f"{each.arm} with seed {each.seed}" for each in scored if each.diverged]
    missing = len(index.runs) - len(with_answers) - sum(each.diverged for each in index.runs)
    if diverged:
        note(f"{path}: diverged, so it has no answers and is left out: {', '.join(diverged)}")
    if missing:
        note(f"{path}: {missing} of {len(index.runs)} runs are missing and left out")
    return runs


def as_arm(run: ComparedRun, experiment: Path, arm: str, *, as_planned: bool = False) -> ComparedRun:
    """Return ``run`` as a run of an experiment's arm, whatever its recipe.

    Args:
        run: run with its answers.
        experiment: folder of the experiment.
        arm: name of the arm.
        as_planned: leave out answers to questions beyond those of the run's recipe.
    """
    evaluation = run.evaluation
    if as_planned and evaluation.run is not None:
        evaluation = evaluation.planned_by(evaluation.run.recipe)
    return replace(run, evaluation=evaluation, name=arm, arm=f"{experiment}: {arm}")


def compared_run(path: Path, evaluation: str | None = None) -> ComparedRun:
    """Return the run at ``path`` with the evaluation of this name; by default with the only one, or the one that its
    recipe describes."""
    return compared(Run(path).evaluation_folder(evaluation), path=path)


def compared(folder: Path, *, path: Path | None = None) -> ComparedRun:
    """Return the run of the evaluation in ``folder``, with its arm, rows and steps.

    Args:
        folder: folder of the evaluation.
        path: run, if that is what the user named. Then the evaluated adapter must be the run's result.
    """
    evaluation = read_complete(folder)
    run = evaluation.run
    answers = replace(ComparedRun.of(evaluation), path=path or folder)
    if run is None or evaluation.of_base:
        return answers
    recipe = run.recipe
    facts = run.facts
    step = evaluated_step(evaluation, of_result=path is not None)
    chosen = result_step(facts, recipe.training)
    if step not in (None, chosen):
        chosen = None
    return replace(
        answers,
        name=run.path.name,
        arm=arm_key(recipe, facts, base=evaluation.weights.fingerprint if evaluation.weights else None),
        seed=recipe.seed,
        training_facts=_training_facts(recipe, facts, step=step, chosen=chosen),
        chosen_step=chosen,
        validation_loss=run.validation_loss if result_of(folder) == folder else None,
    )


def _training_facts(
    recipe: Recipe, facts: Mapping[str, Any], *, step: int | None, chosen: int | None
) -> dict[str, str]:
    """Return field -> value, for the rows of the source, those drawn by the seed, and the adapter's step.

    For an adapter that validations chose, the rule stands for the step, as one rule may choose different steps. What
    depends on the seed is a field of its own: training leaves out rows that repeat a validation row, so with another
    seed the number of trained rows may differ, and with epochs the number of steps.

    Args:
        recipe: recipe of the run.
        facts: content of its ``run.json``.
        step: step of the adapter; ``None`` if unknown.
        chosen: that step, if validations chose it.
    """
    if "imported" in facts:
        return {"steps": "unknown, as are its rows,"}
    values = recipe.model_dump(mode="json")
    data = facts.get("data", {})
    training = recipe.training
    total = facts.get("steps")
    fields = {}
    for key in fields_that_change(Changes.ROWS):
        section, _, name = key.partition(".")
        fields[key] = str(values[section].get(name))
    by_seed = f".{recipe.seed}" if "source_sha256" in data else ""
    fields[f"trained_rows{by_seed}"] = str(facts.get("trained_rows"))
    fields["steps"] = str(total if step is None else step)
    if step in (None, total) and training.max_steps is None and by_seed:
        fields[f"steps{by_seed}"] = fields["steps"]
        fields["steps"] = f"{training.epochs:g} epochs"
    if chosen is not None:
        fields["steps"] = (
            f"the {training.result} of up to {total}, validated every {training.validate_every} by"
            f" {training.best_by}, patience {training.patience}"
        )
    fields[f"rows.{recipe.seed}"] = str(data.get("sha256"))[:8]
    if "source_sha256" in data:
        fields["rows"] = data["source_sha256"][:8]
    return fields


def evaluated_step(evaluation: Evaluation, *, of_result: bool) -> int | None:
    """Return the step of the evaluated adapter; ``None`` if the run has no adapter any more, or an imported one.

    Args:
        evaluation: evaluation in the folder of a run.
        of_result: whether it has to be of the run's result.

    Raises:
        UsageError: the evaluated adapter is none of the run's, or, with ``of_result``, not its result.
    """
    folder = evaluation.folder
    run = Run(folder.parent.parent)
    adapter_hash = evaluation.weights.adapter if evaluation.weights else None
    adapters = [run.result] if of_result and run.finished else run.adapters
    for adapter in adapters:
        manifest = read_manifest(adapter)
        if manifest["sha256"][WEIGHTS] == adapter_hash:
            return manifest.get("step")
    checkpoint = re.search(r"-step-(\d+)$", folder.name)
    if checkpoint and not of_result:  # the checkpoint was deleted
        return int(checkpoint[1])
    if adapters:
        raise UsageError(
            f"{folder}: scores of other weights than those in {run.path}, perhaps from before it was resumed; remove"
            f" this folder and evaluate again: moslora eval {shlex.quote(str(run.path))}"
        )
    return None


def arm_key(recipe: Recipe, facts: Mapping[str, Any], *, base: str | None) -> str:
    """Return the key of a run's arm: all that changes a training step, except the seed.

    These are values of its recipe, a hash of all rows of its source, its base, the weights that it started with, and
    its strength. A gate's balance loss is a mean over each pass, so with it also what divides rows into passes.

    Args:
        recipe: recipe of the run.
        facts: content of its ``run.json``.
        base: fingerprint of its base; ``None`` if it is unknown.
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
