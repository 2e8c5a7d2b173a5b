"""The evaluations that are compared, found at the paths that a user names."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from moslora.compare.index import ExperimentIndex, read_index
from moslora.compare.logs import log_files, read_logs
from moslora.compare.runs import ComparedRun, read_complete
from moslora.compare.tables import read_tables
from moslora.console import note
from moslora.errors import UsageError
from moslora.recipe import Changes, Recipe
from moslora.runs.best import result_step
from moslora.runs.evaluation import Evaluation, is_evaluation
from moslora.runs.manifest import WEIGHTS, read_manifest
from moslora.runs.origin import predecessor_of
from moslora.runs.run import Run, is_run
from moslora.runs.settings import Settings

OF_AN_ARM = (Changes.TRAINED, Changes.ROWS)
"""What the values of a recipe change that make another arm. The base is told by its fingerprint, and the rows, wherever
they are and however they are read, by a hash of all of them."""


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
    if any(_is_log(path) for path in paths):
        return read_logs(paths, cluster=cluster)
    if cluster is not None:
        raise UsageError(
            f"--cluster {cluster}: is for logs of other programs; a run's recipe says what groups the questions of its"
            " tasks (tasks.NAME.cluster), and moslora eval writes it down"
        )
    found: list[ComparedRun] = []
    for path in paths:
        if (len(paths) > 1 or evaluation) and read_tables(path):
            raise UsageError(f"{path}: an experiment in tables is compared alone; give no other path or --evaluation")
        index = read_index(path)
        if is_evaluation(path):
            here = [compared_run(path)]
        elif index is not None:
            here = _of_experiment(path, index, evaluation=evaluation)
        else:
            here = [compared_run(Run(run).evaluation(evaluation), run=run) for run in runs_at(path)]
        if not here:
            raise UsageError(f"{path}: no evaluated run here")
        found += here
    return found


def _is_log(path: Path) -> bool:
    is_ours = is_evaluation(path) or runs_at(path) or read_index(path) is not None
    return not is_ours and bool(log_files(path))


def runs_at(path: Path) -> dict[Path, str | None]:
    """The run at ``path``, those in this folder, or an experiment's with the arms that its index names."""
    index = read_index(path)
    if index is not None:
        folders = {path / run.folder: run.arm for run in index.runs}
        return {folder: arm for folder, arm in folders.items() if is_run(folder)}
    if is_run(path):
        return {path: None}
    return {folder: None for folder in sorted(path.glob("*")) if is_run(folder)}


def _of_experiment(path: Path, index: ExperimentIndex, *, evaluation: str | None) -> list[ComparedRun]:
    """The scored runs of an experiment: those in its tables, and those that have a folder, which may be at another
    learning rate now. Says which have no answers, or are missing."""
    rates = {run.arm: run.learning_rate for run in index.runs}
    diverged = []
    found = []
    for row in read_tables(path):
        if rates.get(row.arm or "", row.rate) != row.rate:
            continue
        if row.diverged and row.role == "scored":
            diverged.append(f"{row.arm} with seed {row.seed}")
        elif row.evaluation is not None and row.arm is not None:
            run = ComparedRun(row.evaluation, path / row.name, seed=row.seed)
            found.append(of_arm(run, path, row.arm))
    missing = 0
    for planned in index.runs:
        folder = path / planned.folder
        if planned.diverged:
            diverged.append(f"{planned.arm} with seed {planned.seed}")
        elif not is_run(folder):
            missing += 1
        else:
            run = compared_run(Run(folder).evaluation(evaluation), run=folder)
            found.append(of_arm(run, path, planned.arm, as_planned=not evaluation))
    if diverged:
        note(f"{path}: diverged, so it has no answers and is left out: {', '.join(diverged)}")
    if missing:
        note(f"{path}: {missing} of {len(index.runs)} runs are missing and left out")
    return found


def of_arm(run: ComparedRun, experiment: Path, arm: str, *, as_planned: bool = False) -> ComparedRun:
    """The run as one of an experiment's arm, whatever its recipe; ``as_planned``, it has what its recipe asks, where it
    may have been asked more."""
    if run.recipe is not None and as_planned:
        asked = run.recipe["evaluation"]
        run = run.restricted_to(asked["tasks"] or run.recipe["data"]["tasks"], asked["limit"])
    return replace(run, name=arm, arm=f"{experiment}: {arm}")


def compared_run(folder: Path, *, run: Path | None = None) -> ComparedRun:
    """The evaluation in ``folder``, which stands for a ``run`` if that is given."""
    evaluation = read_complete(folder).in_order
    found = ComparedRun(evaluation, path=run or folder, name=folder.name, arm=str(folder))
    made = evaluation.run
    if made is None:
        return found
    if evaluation.of_base:
        return replace(found, name="base")
    recipe = made.recipe
    facts = made.facts
    training = recipe.training
    chosen = result_step(facts, training)
    steps = evaluated_steps(folder, evaluation.settings, of_run=run is not None)
    if steps is None:
        steps = chosen
    rule = ""
    if steps is not None and steps == chosen:
        rule = (
            f"the {training.result} of up to {facts['steps']}, validated every {training.validate_every} by"
            f" {training.best_by}, patience {training.patience}"
        )
    if steps is not None:
        facts["steps"] = steps
    arm = arm_of(recipe, facts, base=evaluation.settings.metadata.get("fingerprint"))
    values = recipe.model_dump(mode="json")
    return replace(found, recipe=values, facts=facts, name=made.path.name, arm=arm, seed=recipe.seed, rule=rule)


def evaluated_steps(folder: Path, settings: Settings, *, of_run: bool) -> int | None:
    """Steps of the adapter that was evaluated in ``folder``; ``None`` if its run keeps none.

    Raises:
        UsageError: the run has other adapters, or, where the evaluation stands for the run (``of_run``), its result is
            another one.
    """
    run = Run(folder.parent.parent)
    adapters = run.adapters
    for adapter in [run.result] if of_run and run.finished else adapters:
        manifest = read_manifest(adapter)
        if manifest["sha256"][WEIGHTS] == settings.metadata.get("adapter"):
            return manifest.get("step")  # none of an imported one
    checkpoint = re.search(r"-step-(\d+)$", folder.name)
    if checkpoint and not of_run:
        return int(checkpoint[1])  # which was deleted since
    if adapters:
        raise UsageError(
            f"{folder}: scores of other weights than {run.path} has now, perhaps after more training; remove this"
            f" folder and evaluate again: moslora eval {shlex.quote(str(run.path))}"
        )
    return None


def base_command(evaluation: Evaluation) -> str:
    """The command that asks the base of a run the questions of its ``evaluation``, in the same way."""
    settings = evaluation.settings
    options = {key: getattr(settings, key) for key in ("protocol", "format", "dtype", "beams", "max_length")}
    options["source"] = settings.metadata.get("source")
    options["tasks"] = ",".join(evaluation.tasks)
    options["limit"] = max(len(answers.ids) for answers in evaluation.tasks.values())
    words = ["moslora", "eval", str(evaluation.folder.parent.parent), "--base"]
    for key, value in options.items():
        if value is not None:
            words += [f"--{key.replace('_', '-')}", str(value)]
    return shlex.join(words)


def arm_of(recipe: Recipe, facts: Mapping[str, Any], *, base: str | None) -> str:
    """What makes the arm of a run: every value of its recipe that changes a step, but for the seed; a hash of all rows
    of its source; its ``base``, a fingerprint if it is known; the weights that it started with; and with a gate's
    balance, which each pass takes over its own rows, what cut the passes.
    """
    values = recipe.values(*OF_AN_ARM)
    values["source"] = facts.get("data", {}).get("source_sha256")
    values["base"] = base or [recipe.model.name, recipe.model.revision]
    if recipe.adapter.continue_from is not None:
        predecessor = predecessor_of(facts)
        values["start"] = recipe.adapter.continue_from
        if predecessor is not None:
            values["start"] = predecessor.adapter
    if recipe.adapter.is_balanced:
        values["passes"] = [facts.get("processes"), facts.get("micro_batch_tokens")]
    return json.dumps(values, sort_keys=True)
