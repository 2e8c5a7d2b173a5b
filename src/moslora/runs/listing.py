"""Table of all runs below a folder: model, progress and scores. Importing this module does not load torch."""

import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby
from pathlib import Path

from moslora.errors import MosloraError, UsageError
from moslora.runs.best import best_of
from moslora.runs.evaluation import is_finished, questions_in_common, read_evaluation
from moslora.runs.intervals import percent
from moslora.runs.manifest import MANIFEST, RECIPE
from moslora.runs.results import results_of
from moslora.runs.run import CHECKPOINTS, EVALUATIONS, RESULT, Run, result_of
from moslora.runs.strength import strength_of

NOT_SEARCHED = (RESULT, CHECKPOINTS, EVALUATIONS, "merged", "peft")
"""Folders of a run that contain no other run."""


def table_of_runs(folder: Path) -> list[list[str]]:
    """Table of every run at or below ``folder``, header first."""
    rows = []
    for run in _runs_below(folder):
        name = run.path if run.path == folder else run.path.relative_to(folder)
        rows.append([str(name), *_row(run)])
    if not rows:
        what = "no runs" if folder.is_dir() else "no such folder"
        raise UsageError(f"{folder}: {what}; name the folder they are in, or train one: moslora train RECIPE")
    return [["run", "base", "adapter", "steps", "state", "scores"], *rows]


def _runs_below(folder: Path) -> Iterator[Run]:
    """Runs at or below ``folder``, sorted by path."""
    for place, below, files in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))  # os.walk continues in these
        if RECIPE in files and MANIFEST not in files:
            yield Run(Path(place))
            below[:] = [name for name in below if name not in NOT_SEARCHED]


def _row(run: Run) -> list[str]:
    facts = run.facts
    base = "?"
    adapter = "unreadable recipe"
    state = "finished"
    with suppress(MosloraError):  # of another version
        base = Path(run.recipe.model.name).name
        adapter = run.recipe.adapter.summary()
        best = best_of(facts)
        if best is not None and best.has_run_out(run.recipe.training.patience):
            state += ", by patience"
        if run.best is not None:
            state += f", best step {run.best.step:,}"
    strength = strength_of(facts)
    if strength is not None:
        state = f"strength {strength}"
    elif "imported" in facts:
        state = "imported"
    elif run.without_result:
        state = f"finished, no {RESULT}/"
    elif not run.finished:
        state = "unfinished" if run.begun else "not begun"
        last = max((row["step"] for row in run.metrics), default=0)
        if last > run.steps_done:
            state += f", at step {last:,}"
    steps = f"{run.steps_done:,}/{facts['steps']:,}" if facts.get("steps") else "–"
    return [base, adapter, steps, state, "; ".join(_scores(run)) or "–"]


def _scores(run: Run) -> Iterator[str]:
    """Scores of each finished evaluation, with a remark if the run, its base and its checkpoints were asked different
    questions; then the names of unfinished evaluations."""
    evaluations = []
    interrupted = []
    for folder in run.evaluations:
        with suppress(MosloraError):  # a damaged file, which commands that read scores report
            evaluation = read_evaluation(folder)
            if evaluation.unfinished or not is_finished(folder):
                interrupted.append(folder.name)
            else:
                evaluations.append(evaluation)
    for _, of_result in groupby(evaluations, key=lambda evaluation: result_of(evaluation.folder)):
        group = list(of_result)
        shared, left_out = questions_in_common(group)
        remark = left_out.partition("; ")[0]
        if left_out and shared:
            group = [evaluation.only(shared) for evaluation in group]
        elif left_out:
            remark = "of different questions: moslora compare takes those in common"
        for evaluation in group:
            results = results_of(evaluation)
            scores = [f"{task} {score.nats_per_byte:.4f} nats per byte" for task, score in results.texts.items()]
            if results.macro is not None:
                scores.insert(0, f"{percent(results.macro.main.value)} (n {results.macro.n:,})")
            yield f"{evaluation.folder.name} {', '.join(scores)}"
        if remark:
            yield remark
    for name in interrupted:
        yield f"{name} unfinished"
