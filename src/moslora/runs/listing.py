"""All runs below a folder as a table: what they are, how far they came, their scores. Importing this loads no torch."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from moslora.errors import MosloraError, UsageError
from moslora.recipe import TrainingSection
from moslora.runs.best import best_of
from moslora.runs.evaluation import in_common, is_finished, read_evaluation, unfinished_tasks
from moslora.runs.manifest import MANIFEST, RECIPE
from moslora.runs.outcomes import right
from moslora.runs.predictions import task_of
from moslora.runs.run import BESIDE, CHECKPOINTS, EVALUATIONS, PREDICTIONS, RESULT, Run
from moslora.runs.settings import read_head

HEADER = ["run", "base", "adapter", "steps", "state", "scores"]

NOT_SEARCHED = (RESULT, CHECKPOINTS, EVALUATIONS, "merged", "peft")
"""Folders of a run in which there are no other runs."""


def table_of_runs(folder: Path) -> list[list[str]]:
    """Header first: every run at or below ``folder``."""
    rows = []
    for run in _runs_below(folder):
        name = run.path
        if run.path != folder:
            name = run.path.relative_to(folder)
        rows.append([str(name), *_row(run)])
    if not rows:
        what = "no runs here" if folder.is_dir() else "no such folder"
        raise UsageError(f"{folder}: {what}; name the folder they are in, or train one: moslora train RECIPE")
    return [HEADER, *rows]


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
    ending = "finished"
    try:
        base = Path(run.recipe.model.name).name
        adapter = run.recipe.adapter.summary()
        ending = _how_finished(facts, run.recipe.training)
    except MosloraError:  # of another version
        pass
    if "imported" in facts:
        ending = "imported"
    elif run.without_result:
        ending = f"finished, no {RESULT}/"
    elif not run.finished:
        ending = "unfinished" if run.begun else "not begun"
    steps = "–"
    if facts.get("steps"):
        steps = f"{run.steps_done:,}/{facts['steps']:,}"
    interrupted = unfinished_evaluations(run)
    results = {name: card for name, card in facts.get("results", {}).items() if name not in interrupted}
    scores = [*_scores(run, results)]
    for name, (answered, asked) in interrupted.items():  # without an average, which would be over a part
        scores.append(f"{name} unfinished ({answered:,} of {asked:,} questions)")
    return [base, adapter, steps, ending, "; ".join(scores) or "–"]


def _how_finished(facts: Mapping[str, Any], training: TrainingSection) -> str:
    """With what validations decided of it."""
    words = ["finished"]
    best = best_of(facts)
    if best is not None and best.has_run_out(training.patience):
        words.append("by patience")
    if best is not None and best.step is not None and training.result == "best":
        words.append(f"best step {best.step:,}")
    if best is not None and best.by == "accuracy" and len(words) > 1:
        words[-1] += " by accuracy"
    return ", ".join(words)


def _scores(run: Run, results: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    """Macro averages: where a run, its base and its checkpoints were not asked the same, of what all answered, or with
    a remark if that is nothing."""
    for _, names in groupby(sorted(results), key=lambda name: BESIDE.sub("", name)):
        cards = {name: results[name] for name in names}
        asked_alike = _asked_alike(list(cards.values()))
        if not asked_alike:
            shared = _shared_scores(run, list(cards))
            if shared:
                yield from shared
                continue
        for name, card in cards.items():
            scores = []
            if "macro" in card:
                scores.append(f"{100 * card['macro']:.1f} (n {card['questions']:,})")
            for task, nats in card.get("nats_per_byte", {}).items():
                scores.append(f"{task} {nats:.4f} nats per byte")
            yield f"{name} {', '.join(scores)}"
        if not asked_alike:
            yield "of different questions: moslora compare takes those in common"


def _shared_scores(run: Run, names: Sequence[str]) -> list[str]:
    """Macro averages over the questions that all these evaluations answered, and a line that says so; empty without
    such questions."""
    try:
        evaluations = [read_evaluation(run.path / EVALUATIONS / name) for name in names]
    except MosloraError:  # a damaged one
        return []
    shared, line = in_common(evaluations)
    scores = []
    for name, evaluation in zip(names, evaluations, strict=True):
        tasks = [answers for answers in evaluation.only(shared).tasks.values() if not answers.are_texts]
        if not tasks:
            return []
        macro = fmean(fmean(right(answers)) for answers in tasks)
        count = sum(len(answers.ids) for answers in tasks)
        scores.append(f"{name} {100 * macro:.1f} (n {count:,})")
    return [*scores, line.partition("; ")[0]]


def _asked_alike(cards: list[dict[str, Any]]) -> bool:
    """Whether all have the same number of questions of each task, and the same hash of its data."""
    return all(card["asked"] == cards[0]["asked"] for card in cards)


def unfinished_evaluations(run: Run) -> dict[str, tuple[int, int]]:
    """The evaluations that were interrupted, by name: the number of questions answered, and asked. One with a damaged
    file is not among them, which is told where the scores are read."""
    found = {}
    for folder in run.evaluations:
        try:
            head = read_head(folder)
            unfinished = unfinished_tasks(head, _answered(folder))
        except (MosloraError, OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if unfinished or not is_finished(folder):
            asked = sum(record.asked or 0 for record in head.tasks.values())
            found[folder.name] = (asked - sum(all_of_it - done for done, all_of_it in unfinished.values()), asked)
    return found


def _answered(folder: Path) -> Counter[str]:
    """Task -> number of its predictions. A line that is still being written is none."""
    file = folder / PREDICTIONS
    if not file.exists():
        return Counter()
    lines = file.read_bytes().split(b"\n")
    return Counter(task_of(json.loads(line)) for line in lines[:-1])
