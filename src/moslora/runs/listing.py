"""All runs below a folder as a table: what they are, how far they came, their scores. Importing this loads no torch."""

import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from statistics import StatisticsError, fmean
from typing import Any

from moslora.errors import MosloraError, UsageError
from moslora.runs.best import best_of
from moslora.runs.evaluation import in_common, is_finished, read_evaluation, read_predictions, unfinished_tasks
from moslora.runs.header import read_header
from moslora.runs.manifest import MANIFEST, RECIPE
from moslora.runs.outcomes import right
from moslora.runs.run import BESIDE, CHECKPOINTS, EVALUATIONS, RESULT, Run
from moslora.runs.strength import strength_of

NOT_SEARCHED = (RESULT, CHECKPOINTS, EVALUATIONS, "merged", "peft")
"""Folders of a run in which there are no other runs."""


def table_of_runs(folder: Path) -> list[list[str]]:
    """Header first: every run at or below ``folder``."""
    rows = []
    for run in _runs_below(folder):
        name = run.path if run.path == folder else run.path.relative_to(folder)
        rows.append([str(name), *_row(run)])
    if not rows:
        what = "no runs here" if folder.is_dir() else "no such folder"
        raise UsageError(f"{folder}: {what}; name the folder they are in, or train one: moslora train RECIPE")
    return [["run", "base", "adapter", "steps", "state", "scores"], *rows]


def _runs_below(folder: Path) -> Iterator[Run]:
    """In the order of their paths."""
    for place, below, files in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))  # where os.walk goes on
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
    steps = f"{run.steps_done:,}/{facts['steps']:,}" if facts.get("steps") else "–"
    return [base, adapter, steps, state, "; ".join(_scores(run)) or "–"]


def _scores(run: Run) -> Iterator[str]:
    """Macro averages, with a remark where the run, its base and its checkpoints were not asked the same; without those
    of evaluations that were interrupted, which would be over a part."""
    interrupted = []
    for folder in run.evaluations:
        with suppress(MosloraError):  # a damaged file, which is told where the scores are read
            if unfinished_tasks(read_header(folder), read_predictions(folder)) or not is_finished(folder):
                interrupted.append(folder.name)
    results = {name: card for name, card in run.facts.get("results", {}).items() if name not in interrupted}
    for _, names in groupby(sorted(results), key=lambda name: BESIDE.sub("", name)):
        cards = {name: results[name] for name in names}
        asked = [card["asked"] for card in cards.values()]  # the number of questions of each task, its data's hash
        remark = ""
        if any(one != asked[0] for one in asked):
            cards, remark = _in_common(run, cards)
        for name, card in cards.items():
            scores = [f"{100 * card['macro']:.1f} (n {card['questions']:,})"] if "macro" in card else []
            scores += [f"{task} {nats:.4f} nats per byte" for task, nats in card.get("nats_per_byte", {}).items()]
            yield f"{name} {', '.join(scores)}"
        if remark:
            yield remark
    for name in interrupted:
        yield f"{name} unfinished"


def _in_common(run: Run, cards: dict[str, dict[str, Any]]) -> tuple[dict[str, dict[str, Any]], str]:
    """The evaluations' averages over the questions that all answered, and a line that says so; their own if there are
    no such questions."""
    with suppress(MosloraError, StatisticsError):  # a damaged one, or the mean of nothing
        evaluations = [read_evaluation(run.path / EVALUATIONS / name) for name in cards]
        shared, line = in_common(evaluations)
        averages = {}
        for each in evaluations:
            columns = [right(answers) for answers in each.only(shared).tasks.values() if not answers.are_texts]
            averages[each.folder.name] = {"macro": fmean(map(fmean, columns)), "questions": sum(map(len, columns))}
        return averages, line.partition("; ")[0]
    return cards, "of different questions: moslora compare takes those in common"
