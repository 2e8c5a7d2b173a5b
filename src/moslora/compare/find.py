"""The evaluations that are compared, found at the paths that a user names."""

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from moslora.compare.arm_of import arm_of
from moslora.compare.index import ExperimentIndex, read_index
from moslora.compare.logs import log_files, read_logs
from moslora.compare.runs import ComparedRun, read_complete
from moslora.console import note
from moslora.errors import UsageError
from moslora.recipe import TrainingSection
from moslora.runs.best import result_step
from moslora.runs.evaluation import Evaluation, is_evaluation
from moslora.runs.manifest import WEIGHTS, read_manifest
from moslora.runs.run import Run, is_run
from moslora.runs.settings import Settings

Read = Callable[[Path], Evaluation]
"""Reads the evaluation in a folder, such as `read_complete`; a report reads each once."""


def find(
    paths: Sequence[Path], *, evaluation: str | None = None, read: Read = read_complete, cluster: str | None = None
) -> list[ComparedRun]:
    """The evaluations at these paths, in their order. If one is a log of another program, all are.

    Args:
        paths: runs, folders of runs, experiments, or folders of one evaluation; or logs.
        evaluation: name of the evaluation's folder in a run; ``None`` for the only one, or the recipe's.
        read: reads an evaluation.
        cluster: what groups the questions of logs (`read_logs`).
    """
    if any(_is_log(path) for path in paths):
        return read_logs(paths, cluster=cluster)
    if cluster is not None:
        raise UsageError(
            f"--cluster {cluster}: is for logs of other programs; a run's recipe says what groups the questions of its"
            " tasks (tasks.NAME.cluster), and moslora eval writes it down"
        )
    found = []
    for path in paths:
        found += _find_at(path, evaluation=evaluation, read=read)
    return found


def _is_log(path: Path) -> bool:
    if is_evaluation(path) or runs_at(path):
        return False
    return bool(log_files(path))


def runs_at(path: Path) -> dict[Path, str | None]:
    """The run at ``path``, those in this folder, or an experiment's with the arms that its index names."""
    index = read_index(path)
    if index is not None:
        folders = {path / run.folder: run.arm for run in index.runs}
        return {folder: arm for folder, arm in folders.items() if is_run(folder)}
    if is_run(path):
        return {path: None}
    return {folder: None for folder in sorted(path.glob("*")) if is_run(folder)}


def _find_at(path: Path, *, evaluation: str | None, read: Read) -> list[ComparedRun]:
    """The evaluations at one path."""
    if is_evaluation(path):
        return [compared_run(path, read=read)]
    runs = runs_at(path)
    index = read_index(path)
    diverged: set[Path] = set()
    if index is not None:
        diverged = {path / run.folder for run in index.runs if run.diverged}
        _note_left_out(path, index, there=runs)
    if not runs and path.exists():
        raise UsageError(f"{path}: no evaluated run here")
    if not runs:
        raise UsageError(f"{path}: no such file or folder; moslora runs lists the runs")
    found = []
    for folder, arm in runs.items():
        if folder in diverged:
            continue
        one = compared_run(Run(folder).evaluation(evaluation), run=folder, read=read)
        if arm and not evaluation:
            one = _as_planned(one)
        if arm:
            one = replace(one, name=arm, arm=f"{path}: {arm}")
        found.append(one)
    return found


def _note_left_out(path: Path, index: ExperimentIndex, *, there: dict[Path, str | None]) -> None:
    """Says which runs of the experiment in ``path`` have no answers, or are not ``there``."""
    diverged = [run for run in index.runs if run.diverged]
    if diverged:
        names = ", ".join(f"{run.arm} with seed {run.seed}" for run in diverged)
        note(f"{path}: diverged, so it has no answers and is left out: {names}")
    missing = [run for run in index.runs if not run.diverged and path / run.folder not in there]
    if missing:
        note(f"{path}: {len(missing)} of {len(index.runs)} runs are missing and left out")


def _as_planned(run: ComparedRun) -> ComparedRun:
    """The run with its experiment's own questions; it may have been asked more."""
    if run.recipe is None:
        return run
    asked = run.recipe["evaluation"]
    return run.restricted_to(asked["tasks"] or run.recipe["data"]["tasks"], asked["limit"])


def compared_run(folder: Path, *, run: Path | None = None, read: Read = read_complete) -> ComparedRun:
    """The evaluation in ``folder``, which stands for a ``run`` if that is given."""
    evaluation = read(folder).in_order
    found = ComparedRun(evaluation, path=run or folder, name=folder.name, arm=str(folder))
    made = evaluation.run
    if made is None:
        return found
    if evaluation.of_base:
        return replace(found, name="base")
    recipe = made.recipe
    facts = made.facts
    chosen = result_step(facts, recipe.training)
    rule = ""
    steps = evaluated_steps(folder, evaluation.settings, of_run=run is not None)
    if steps is None:
        steps = chosen
    if steps is not None and steps == chosen:
        rule = _rule(recipe.training, planned=facts["steps"])
    if steps is not None:
        facts["steps"] = steps
    arm = arm_of(recipe, facts, base=evaluation.settings.metadata.get("fingerprint"))
    values = recipe.model_dump(mode="json")
    return replace(found, recipe=values, facts=facts, name=made.path.name, arm=arm, seed=recipe.seed, rule=rule)


def _rule(training: TrainingSection, *, planned: int) -> str:
    """How validations chose the steps of a run."""
    rule = f"the {training.result} of up to {planned}, validated every {training.validate_every}"
    if training.best_by == "accuracy":
        rule += " by accuracy"
    if training.patience is not None:
        rule += f" with patience {training.patience}"
    return rule


def evaluated_steps(folder: Path, settings: Settings, *, of_run: bool) -> int | None:
    """Steps of the adapter that was evaluated in ``folder``; ``None`` if its run keeps none.

    Raises:
        UsageError: the run has other adapters, or, where the evaluation stands for the run (``of_run``), its result is
            another one.
    """
    run = Run(folder.parent.parent)
    adapters = run.adapters
    candidates = adapters
    if of_run and run.finished:
        candidates = [run.result]
    for adapter in candidates:
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
