"""The answers of one evaluation, as a comparison needs them: question by question, with what is known of the run."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from typing import Any, ClassVar

from pydantic import TypeAdapter, ValidationError

from moslora.compare.outcomes import OUTCOMES
from moslora.console import note_once
from moslora.errors import MosloraError, counted, first_line, some
from moslora.evaluation import METRICS, Evaluation, Prediction, Settings
from moslora.evaluation.batches import canonical_place

Questions = Mapping[str, Collection[str]]
"""Task -> the ids of some of its questions."""

PROMPT = "prompt_hash"
HASHES = "doc_hash", "target_hash", PROMPT
"""Of a question in a log. Prompts may differ if that is meant, as with a chat template."""

COLUMNS = "columns.json"
"""The columns of `TaskAnswers` by task, in an evaluation of which no more was kept."""


@dataclass(frozen=True)
class TaskAnswers:
    """Answers to the questions of one task, column by column, in the order of the ids, which are sorted.

    Attributes:
        gold: position of the right option; empty for texts, and if a log does not tell.
        outcomes: the numbers that can be compared, of questions or of texts; empty for one that the protocol does not
            have.
        hashes: a log's `HASHES`, if it has them.
        cut: whether the question, or the text, was longer than the limit; empty where that was not kept.
    """

    ids: tuple[str, ...]
    gold: tuple[int, ...]
    outcomes: Mapping[str, tuple[float, ...]]
    hashes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    cut: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        columns = (self.gold, self.cut, *self.outcomes.values(), *self.hashes.values())
        if {len(column or self.ids) for column in columns} != {len(self.ids)}:
            raise ValueError("columns of different lengths")

    def only(self, ids: Collection[str]) -> "TaskAnswers":
        """The answers to these questions."""
        kept = [id in ids for id in self.ids]
        outcomes = {name: tuple(compress(column, kept)) for name, column in self.outcomes.items()}
        hashes = {name: tuple(compress(column, kept)) for name, column in self.hashes.items()}
        return TaskAnswers(
            ids=tuple(compress(self.ids, kept)),
            gold=tuple(compress(self.gold, kept)),
            outcomes=outcomes,
            hashes=hashes,
            cut=tuple(compress(self.cut, kept)),
        )


class Log:
    """The settings of another program, which are not known; its questions may have hashes instead."""

    data: ClassVar[Mapping[str, str]] = {}
    asked = made_with = metadata = data
    model: ClassVar[Mapping[str, str]] = {PROMPT: "of each question"}


@dataclass(frozen=True)
class Answers:
    """One evaluation of one run.

    Attributes:
        settings: how it was asked.
        tasks: task -> answers.
        path: of the run, or of the evaluation's folder or log, as the user named it.
        recipe: how it was trained, every field; ``None`` for a model that is no run's, and for a base.
        facts: of its ``run.json``; empty where ``recipe`` is ``None``.
        name: of the run.
        arm: the same for all runs that differ only in the seed.
        seed: ``None`` if it has none, as a base.
    """

    settings: Settings | Log
    tasks: Mapping[str, TaskAnswers]
    path: Path
    recipe: Mapping[str, Any] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    arm: str = ""
    seed: int | None = None

    @property
    def source_hash(self) -> str | None:
        """Of all rows among which its seed chose; ``None`` if it was not trained, or an earlier version trained it."""
        found: str | None = self.facts.get("data", {}).get("source_sha256")
        return found

    def only(self, questions: Questions) -> "Answers":
        """The answers to these questions."""
        kept = {task: self.tasks[task].only(ids) for task, ids in questions.items() if task in self.tasks}
        return replace(self, tasks=kept)

    def restricted_to(self, tasks: Collection[str], limit: int | None = None) -> "Answers":
        """What an evaluation of these tasks with this limit has."""
        kept = {}
        for task, answers in self.tasks.items():
            if task in tasks:
                kept[task] = set(sorted(answers.ids, key=canonical_place)[:limit])
        return self.only(kept)


def in_common(runs: Sequence[Answers]) -> tuple[Questions, str]:
    """The questions that all of ``runs`` answered: the same ids, in tasks of the same data; and a line that says what
    they are and what else was asked, empty if nothing was."""
    shared: dict[str, set[str]] = {}
    left_out = []
    for task in _all_tasks(runs):
        answered = [_answered_by(run, task) for run in runs]
        by_all = set.intersection(*answered)
        by_some = set.union(*answered)
        if by_all:
            shared[task] = {id for _, id in by_all}
        missing = len(by_some) - len(by_all)
        if missing and by_all:
            left_out.append(f"{missing:,} of {task}")
        elif missing:
            left_out.append(task)
    if not left_out:
        return shared, ""
    return shared, f"compared on {_in_words(shared, runs=len(runs))}; left out: {some(left_out, most=8)}"


def _all_tasks(runs: Sequence[Answers]) -> list[str]:
    """In the order in which the runs have them."""
    found: dict[str, None] = {}
    for run in runs:
        found |= dict.fromkeys(run.tasks)
    return list(found)


def _answered_by(run: Answers, task: str) -> set[tuple[str | None, str]]:
    """The questions of a task that a run answered: their data and their ids."""
    if task not in run.tasks:
        return set()
    data = run.settings.data.get(task)
    return {(data, id) for id in run.tasks[task].ids}


def _in_words(shared: Questions, *, runs: int) -> str:
    count = sum(len(ids) for ids in shared.values())
    if not count:
        return "nothing"
    who = "both" if runs == 2 else "all"
    return f"the {counted(count, 'question')} that {who} answered"


def read_answers(evaluation: Evaluation) -> Answers:
    """The answers of an evaluation, without what is known of its run."""
    folder = evaluation.folder
    settings = evaluation.settings
    file = folder / COLUMNS
    if not file.is_file():
        return Answers(settings, by_task(_finished(evaluation), settings), folder)
    try:
        tasks = TypeAdapter(dict[str, TaskAnswers]).validate_json(file.read_bytes())
    except ValidationError as error:
        raise MosloraError(f"{file}: not the answers of a run ({first_line(error)}); evaluate again") from None
    return Answers(settings, tasks, folder)


def _finished(evaluation: Evaluation) -> list[Prediction]:
    """Without tasks of which the evaluation was interrupted."""
    partial = evaluation.unfinished
    if partial:
        tasks = [f"{task} ({answered:,} of {asked:,})" for task, (answered, asked) in partial.items()]
        note_once(f"{evaluation.folder}: interrupted, and left out: {some(tasks)}; moslora eval continues it")
    return [prediction for prediction in evaluation.predictions if prediction.task not in partial]


def by_task(predictions: Sequence[Prediction], settings: Settings) -> dict[str, TaskAnswers]:
    """The columns of these predictions, in the order in which the tasks were asked."""
    rows: dict[str, list[Prediction]] = {prediction.task: [] for prediction in predictions}
    for prediction in sorted(predictions, key=lambda prediction: prediction.id):
        rows[prediction.task].append(prediction)
    return {task: _columns(of_task, settings) for task, of_task in rows.items()}


def _columns(predictions: Sequence[Prediction], settings: Settings) -> TaskAnswers:
    """Those of the predictions of one task, which are all of questions or all of texts."""
    are_texts = predictions[0].bytes > 0
    outcomes: dict[str, tuple[float, ...]] = {}
    for name, outcome in OUTCOMES.items():
        if outcome.of_texts != are_texts:
            continue
        number = METRICS[outcome.metric or settings.primary]
        had = [prediction for prediction in predictions if prediction.scores or not outcome.scored]
        outcomes[name] = tuple(number(prediction) for prediction in had)
    gold: tuple[int, ...] = ()
    if not are_texts:
        gold = tuple(prediction.gold for prediction in predictions)
    return TaskAnswers(
        ids=tuple(prediction.id for prediction in predictions),
        gold=gold,
        outcomes=outcomes,
        cut=tuple(prediction.truncated for prediction in predictions),
    )
