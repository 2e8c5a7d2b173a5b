"""The runs of an experiment as a few files of columns, to be committed or handed on."""

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from moslora.compare.index import EXPERIMENT, read_index
from moslora.console import note
from moslora.errors import UsageError, counted, some
from moslora.experiment.keys import run_name
from moslora.experiment.one_run import state
from moslora.experiment.study import Study
from moslora.files import locked, new_folder
from moslora.runs.evaluation import is_finished, read_evaluation
from moslora.runs.manifest import RECIPE
from moslora.runs.packed import COLUMNS, RUN_FOLDERS, PackedRun, packed_names, write_packed
from moslora.runs.run import RUN, SETTINGS, Run, is_run

DONE = ("trained", "scored", "diverged")
"""The states of runs that are packed."""


def pack_runs(study: Study, out: Path) -> Iterator[str]:
    """Packs the runs of an experiment that are done into the folder ``out``; yields what to tell.

    Raises:
        UsageError: there are none, or ``out`` has other runs.
    """
    index = read_index(study.out)
    if index is None:
        raise UsageError(f"{study.out}: no runs of this experiment yet; without --pack the same command runs it")
    if out.resolve() == study.out.resolve():
        raise UsageError(f"{out}: the experiment's own folder; choose another one with --pack")
    with locked(study.out):
        runs = _runs_that_are_done(study.out)
        lost = sorted(packed_names(out) - runs.keys())
        if lost:
            raise UsageError(
                f"{out}: has runs that {study.out} does not have ({some(lost)}); choose another folder with --pack"
            )
        with new_folder(out, older=lambda: (EXPERIMENT, *COLUMNS)) as scratch:
            write_packed(scratch, runs)
            replace(index, file=study.file_seen_from(out)).write(scratch)
    size = sum((out / name).stat().st_size for name in COLUMNS)
    yield f"written to {out}: {counted(len(runs), 'run')}, {size / 1e6:.1f} MB"
    yield f"next: moslora compare {shlex.quote(str(out))}"


def _runs_that_are_done(folder: Path) -> dict[str, PackedRun]:
    """The runs of the experiment in ``folder``, by name; those that are packed there where they have no folder."""
    names = {path.name for path in (folder / RUN_FOLDERS).glob("*") if is_run(path)}
    names |= packed_names(folder)
    found = {}
    others = []
    for name in sorted(names):
        run = Run(folder / RUN_FOLDERS / name)
        if state(run) in DONE:
            found[name] = run.packed or _packed(run)
        else:
            others.append(name)
    if others:
        note(f"{folder}: not done and left out: {some(others)}")
    return found


def _packed(run: Run) -> PackedRun:
    """The small files of a run, with the evaluations that are finished."""
    settings = {}
    answers = {}
    for folder in run.evaluations:
        if not is_finished(folder):
            note(f"{folder}: interrupted and left out; moslora eval continues it")
            continue
        settings[folder.name] = (folder / SETTINGS).read_text(encoding="utf-8")
        answers[folder.name] = read_evaluation(folder).complete.in_order.tasks
    recipe = run.recipe
    return PackedRun(
        arm=run.name.removesuffix(run_name("", recipe.training.learning_rate, recipe.seed)),
        seed=recipe.seed,
        recipe=(run.path / RECIPE).read_text(encoding="utf-8"),
        card=(run.path / RUN).read_text(encoding="utf-8"),
        settings=settings,
        metrics=run.metrics,
        answers=answers,
    )
