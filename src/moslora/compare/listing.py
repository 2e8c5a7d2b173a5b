"""The runs below a folder: what each is, how far it came, and its scores."""

import os
from collections.abc import Iterator
from pathlib import Path

from moslora.errors import MosloraError, UsageError
from moslora.evaluation.predictions import percent
from moslora.evaluation.results import RESULTS, load_results
from moslora.recipe import load_recipe
from moslora.runs.find import RESULT, checkpoints, run_facts
from moslora.runs.manifest import MANIFEST, RECIPE

NAMES = ("adapter", "checkpoints", "eval", "merged", "peft")
"""Folders of a run, which hold no runs."""


def list_runs(folder: Path) -> list[list[str]]:
    """A table, header first: every run at or below ``folder``."""
    rows = [_row(folder, run) for run in find_runs(folder)]
    if not rows:
        what = "no runs here" if folder.is_dir() else "no such folder"
        raise UsageError(f"{folder}: {what}; name the folder they are in, or train one: moslora train RECIPE")
    return [["run", "base", "adapter", "steps", "state", "scores"], *rows]


def find_runs(folder: Path) -> Iterator[Path]:
    """Every run at or below ``folder``, in the order of their names."""
    for place, below, files in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        if RECIPE in files and MANIFEST not in files:
            yield Path(place)
            below[:] = [name for name in below if name not in NAMES]


def _row(folder: Path, run: Path) -> list[str]:
    done, total = steps_done(run), run_facts(run).get("steps")
    finished = (run / RESULT / MANIFEST).is_file()
    steps = f"{done:,}/{total:,}" if total else "–"
    state = "finished" if finished else "unfinished" if total else "not begun"
    try:
        recipe = load_recipe(run / RECIPE, written=True)
        base, adapter = recipe.model.name, recipe.adapter.summary()
    except MosloraError:  # of another version
        base, adapter = "?", "unreadable recipe"
    if "imported" in run_facts(run):
        steps, state = "–", "imported"
    name = str(run.relative_to(folder)) if run != folder else str(run)
    return [name, Path(base).name, adapter, steps, state, "; ".join(_scores(run)) or "–"]


def steps_done(run: Path) -> int:
    """The updates that ``run`` has saved."""
    if (run / RESULT / MANIFEST).is_file():
        return int(run_facts(run).get("steps", 0))
    saved = checkpoints(run)
    return int(saved[-1].name.removeprefix("step-")) if saved else 0


def _scores(run: Path) -> Iterator[str]:
    """The macro average of each evaluation, by its folder's name."""
    for file in sorted((run / "eval").glob(f"*/{RESULTS}")):
        try:
            results = load_results(file)
        except MosloraError:
            continue
        score = percent(getattr(results.macro, results.settings.primary))
        yield f"{file.parent.name} {score} (n {results.macro.n:,})"
