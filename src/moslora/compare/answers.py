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

    def only(self, questions: Questions) -> "Answers":
        """The answers to these questions."""
        return replace(self, tasks={t: self.tasks[t].only(ids) for t, ids in questions.items() if t in self.tasks})

    def restricted_to(self, tasks: Collection[str], limit: int | None = None) -> "Answers":
        """What an evaluation of these tasks with this limit has."""
        ordered = {t: sorted(its.ids, key=canonical_place) for t, its in self.tasks.items() if t in tasks}
        return self.only({task: set(ids[:limit]) for task, ids in ordered.items()})


def in_common(runs: Sequence[Answers]) -> tuple[Questions, str]:
    """The questions that all of ``runs`` answered: the same ids, in tasks of the same data; and a line that says what
    they are and what else was asked, empty if nothing was."""
    shared: dict[str, set[str]] = {}
    rest = []
    for task in dict.fromkeys(task for run in runs for task in run.tasks):
        asked = [{(run.settings.data.get(task), id) for id in run.tasks[task].ids} for run in runs if task in run.tasks]
        if both := set.intersection(*asked) if len(asked) == len(runs) else set():
            shared[task] = {id for _, id in both}
        if others := len(set.union(*asked)) - len(both):
            rest.append(f"{others:,} of {task}" if both else task)
    if not rest:
        return shared, ""
    count, who = sum(map(len, shared.values())), "both" if len(runs) == 2 else "all"
    on = f"the {counted(count, 'question')} that {who} answered" if count else "nothing"
    return shared, f"compared on {on}; left out: {some(rest, most=8)}"


def read_answers(evaluation: Evaluation) -> Answers:
    """The answers of an evaluation, without what is known of its run."""
    folder, settings = evaluation.folder, evaluation.settings
    if not (file := folder / COLUMNS).is_file():
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
    ordered = sorted(predictions, key=lambda p: p.id)
    rows = {task: [p for p in ordered if p.task == task] for task in dict.fromkeys(p.task for p in predictions)}
    return {
        task: TaskAnswers(
            ids=tuple(p.id for p in found),
            gold=() if found[0].bytes else tuple(p.gold for p in found),
            outcomes={
                name: tuple(METRICS[one.metric or settings.primary](p) for p in found if p.scores or not one.scored)
                for name, one in OUTCOMES.items()
                if one.of_texts == (found[0].bytes > 0)
            },
            cut=tuple(p.truncated for p in found),
        )
        for task, found in rows.items()
    }
