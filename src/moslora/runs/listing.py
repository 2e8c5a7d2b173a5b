"""All runs below a folder as a table: what they are, how far they came, their scores. Importing this loads no torch."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from statistics import StatisticsError, fmean
from typing import Any

from moslora.errors import MosloraError, UsageError
from moslora.recipe import TrainingSection
from moslora.runs.best import best_of
from moslora.runs.evaluation import in_common, is_finished, read_evaluation, read_predictions, unfinished_tasks
from moslora.runs.manifest import MANIFEST, RECIPE
from moslora.runs.outcomes import right
from moslora.runs.run import BESIDE, CHECKPOINTS, EVALUATIONS, RESULT, Run
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
    scores += [f"{name} unfinished" for name in interrupted]  # without an average, which would be over a part
    return [base, adapter, steps, ending, "; ".join(scores) or "–"]


def _how_finished(facts: Mapping[str, Any], training: TrainingSection) -> str:
    """With what validations decided of it."""
    words = ["finished"]
    best = best_of(facts)
    if best is not None and best.has_run_out(training.patience):
        words.append("by patience")
    if best is not None and best.step is not None and training.result == "best":
        words.append(f"best step {best.step:,}")
    return ", ".join(words)


def _scores(run: Run, results: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    """Macro averages; where a run, its base and its checkpoints were not asked the same, with a remark."""
    for _, names in groupby(sorted(results), key=lambda name: BESIDE.sub("", name)):
        cards = {name: results[name] for name in names}
        asked = [card["asked"] for card in cards.values()]  # the number of questions of each task, its data's hash
        remark = ""
        if any(one != asked[0] for one in asked):
            cards, remark = _in_common(run, cards)
        for name, card in cards.items():
            scores = []
            if "macro" in card:
                scores.append(f"{100 * card['macro']:.1f} (n {card['questions']:,})")
            for task, nats in card.get("nats_per_byte", {}).items():
                scores.append(f"{task} {nats:.4f} nats per byte")
            yield f"{name} {', '.join(scores)}"
        if remark:
            yield remark


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


def unfinished_evaluations(run: Run) -> list[str]:
    """The names of the evaluations that were interrupted. One with a damaged file is not among them, which is told
    where the scores are read."""
    found = []
    for folder in run.evaluations:
        with suppress(MosloraError):
            answered = Counter(each.task for each in read_predictions(folder))
            if unfinished_tasks(read_head(folder), answered) or not is_finished(folder):
                found.append(folder.name)
    return found
