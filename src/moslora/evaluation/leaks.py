"""Test questions that are also training rows (leaks), and the numbers without them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moslora.console import note
from moslora.data.overlap import DIGEST_BYTES, digest
from moslora.evaluation.scores import Score, macro, score_task
from moslora.runs.adapter_folder import AdapterFolder
from moslora.runs.answers import TaskAnswers
from moslora.runs.settings import Leaks, TaskRecord
from moslora.tasks import Example


@dataclass(frozen=True)
class WithoutLeaks:
    """The numbers of the questions that are not leaks."""

    compared_with: str  # as in `Leaks`
    leaks: Mapping[str, int]  # task -> number of questions left out
    tasks: Mapping[str, Score]  # without tasks that have only leaks
    macro: Score | None  # every task the same weight; ``None`` if a task has only leaks


def without_leaks(tasks: Mapping[str, TaskAnswers], records: Mapping[str, TaskRecord]) -> WithoutLeaks | None:
    """The numbers of the answers that are not to leaks; ``None`` if the leaks of a task are unknown."""
    counts: dict[str, int] = {}
    scores: dict[str, Score] = {}
    compared_with: dict[str, None] = {}
    for task, answers in tasks.items():
        leaks = records[task].leaks
        if leaks is None:
            return None
        compared_with[leaks.compared_with] = None
        kept = answers.only(set(answers.ids).difference(leaks.ids))
        counts[task] = len(answers.ids) - len(kept.ids)
        if kept.ids:
            scores[task] = score_task(kept, drift=records[task].drift)
    average = macro(list(scores.values())) if len(scores) == len(tasks) else None
    return WithoutLeaks(" and ".join(compared_with), counts, scores, average)


def find_leaks(folder: AdapterFolder | None, questions: Mapping[str, Sequence[Example]]) -> dict[str, Leaks]:
    """The leaks among all test ``questions``, by task; empty without a run, or if it has no record of its training
    rows. Texts are no questions, and have none."""
    if folder is None:
        return {}
    file = folder.run.contents  # `digest` of each row
    contents = file.read_bytes() if file.is_file() else b""
    if len(contents) != DIGEST_BYTES * folder.manifest.get("trained_rows", -1):
        note("unknown whether test questions were in the training rows: this adapter has no record of them")
        return {}
    digests = {contents[start : start + DIGEST_BYTES] for start in range(0, len(contents), DIGEST_BYTES)}
    before = folder.predecessor
    if before is not None:
        note(f"unknown whether test questions were in the training rows of {before.run}, which this run continued")
    compared_with = f"the {folder.manifest['trained_rows']:,} rows this run was trained on"
    found = {}
    for task, rows in questions.items():
        if not any(row.is_text for row in rows):
            ids = sorted(row.id for row in rows if digest(row) in digests)
            found[task] = Leaks(compared_with, tuple(ids))
    return found
