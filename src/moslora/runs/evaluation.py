"""An evaluation: its conditions and its answers. Importing this module does not load torch.

``settings.json``      what the predictions depend on, and a record per task (`moslora.runs.conditions`)
``predictions.jsonl``  one line per question (`moslora.runs.predictions`)
``results.json``       the numbers of the finished tasks, written at the end

`moslora.evaluation.journal` writes all three.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from moslora.console import note_once
from moslora.errors import MosloraError, UsageError, counted, some
from moslora.files import refuse_used
from moslora.process_rank import is_main_process
from moslora.recipe import Recipe
from moslora.runs.answers import TaskAnswers, by_task, order_key
from moslora.runs.conditions import Conditions, EvaluationHeader, TaskRecord, Weights, read_header
from moslora.runs.outcomes import with_outcomes
from moslora.runs.predictions import Prediction
from moslora.runs.run import EVALUATIONS, PREDICTIONS, RESULTS, SETTINGS, Run, base_of

QuestionIds = Mapping[str, Collection[str]]
"""Task -> the ids of some of its questions."""


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of one model, or a part of its questions.

    Attributes:
        folder: its folder, or the log of another program.
        conditions: how the questions were asked; ``None`` for a log, which has no conditions.
        tasks: task -> answers, in the order in which the tasks were asked.
        records: task -> further facts.
        unfinished: interrupted task -> number of questions answered so far, and number to be asked in all.
        base: the base's answers to the same questions, from the experiment's tables or the folder beside ``folder``.
    """

    folder: Path
    conditions: Conditions | None
    tasks: Mapping[str, TaskAnswers]
    records: Mapping[str, TaskRecord] = field(default_factory=dict)
    unfinished: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    base: "Evaluation | None" = None

    @classmethod
    def of(
        cls,
        folder: Path,
        conditions: Conditions,
        predictions: Sequence[Prediction],
        records: Mapping[str, TaskRecord] | None = None,
    ) -> "Evaluation":
        """Evaluation with these predictions, in any order, and records; it sorts each task's questions by id."""
        header = EvaluationHeader(conditions, records or {})
        tasks = {}
        for task, answers in by_task(predictions).items():
            in_order = sorted(range(len(answers.ids)), key=answers.ids.__getitem__)
            tasks[task] = with_outcomes(answers.at(in_order))
        return cls(folder, conditions, header.grouped(tasks), header.tasks)

    @property
    def run(self) -> Run | None:
        """Run that was evaluated; ``None`` for a model without a run, a server or a log."""
        if self.weights is None:
            return None
        run = Run(self.folder.parent.parent)
        if self.folder.parent.name == EVALUATIONS and run.exists:
            return run
        return None

    @property
    def data(self) -> Mapping[str, str]:
        """Task -> hash of all its questions; empty for a log."""
        return self.conditions.data if self.conditions else {}

    @property
    def weights(self) -> Weights | None:
        """Local model that answered; ``None`` for a server or a log."""
        answered_by = self.conditions and self.conditions.answered_by
        return answered_by if isinstance(answered_by, Weights) else None

    @property
    def of_base(self) -> bool:
        """Whether the model that answered has no adapter, as far as is known."""
        return self.weights is None or self.weights.adapter is None

    @property
    def complete(self) -> "Evaluation":
        """Evaluation without its interrupted tasks."""
        return self.restricted_to(self.tasks.keys() - self.unfinished.keys())

    def only(self, questions: QuestionIds) -> "Evaluation":
        """Return the evaluation with these questions alone."""
        kept = {task: self.tasks[task].only(ids) for task, ids in questions.items() if task in self.tasks}
        return replace(self, tasks=kept)

    def planned_by(self, recipe: Recipe) -> "Evaluation":
        """Return the evaluation with only the tasks and questions that ``recipe`` asks for."""
        return self.restricted_to([task.name for task in recipe.questions.tasks], recipe.evaluation.limit)

    def restricted_to(self, tasks: Collection[str], limit: int | None = None) -> "Evaluation":
        """Return the part with only ``tasks``, and of each only the first ``limit`` questions in the fixed order."""
        kept = {task: answers.ids for task, answers in self.tasks.items() if task in tasks}
        if limit is not None:
            kept = {task: tuple(sorted(ids, key=order_key)[:limit]) for task, ids in kept.items()}
        return self.only(kept)


def is_evaluation(folder: Path) -> bool:
    """Whether ``folder`` has an evaluation, finished or not."""
    return (folder / SETTINGS).is_file()


def is_finished(folder: Path) -> bool:
    """Whether the evaluation in ``folder`` was finished at least once."""
    return (folder / RESULTS).is_file()


def read_evaluation(folder: Path) -> Evaluation:
    """Read the evaluation in ``folder``, with every outcome of its answers. Each file is read once.

    Raises:
        UsageError: there are no predictions.
        MosloraError: a file is damaged.
    """
    header = read_header(folder)
    predictions = read_predictions(folder)
    evaluation = Evaluation.of(folder, header.conditions, predictions, header.tasks)
    return replace(evaluation, unfinished=unfinished_tasks(header, predictions))


def read_complete(folder: Path) -> Evaluation:
    """Read the evaluation in ``folder`` and its base's in the folder beside it. Interrupted tasks are left out with a
    note."""
    evaluation = read_evaluation(folder)
    if evaluation.unfinished:
        tasks = [f"{task} ({answered:,} of {asked:,})" for task, (answered, asked) in evaluation.unfinished.items()]
        note_once(f"{folder}: interrupted and left out: {some(tasks)}; moslora eval continues it")
    base = base_of(folder)
    beside = read_complete(base) if base != folder and is_evaluation(base) else None
    return replace(evaluation.complete, base=beside)


def read_predictions(folder: Path) -> list[Prediction]:
    """Read the predictions in ``folder``, in the order in which they were written."""
    file = folder / PREDICTIONS
    if not file.is_file():
        raise UsageError(f"{file}: no predictions; `moslora eval` writes them")
    predictions: dict[str, Prediction] = {}
    # Bytes that are not UTF-8 are replaced, so that the message can name their line.
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            prediction = Prediction.from_json(line)
            if prediction.id in predictions:
                raise ValueError(f"{prediction.id} appears twice")
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            hint = "remove the folder and evaluate again"
            raise MosloraError(f"{file}:{number}: not a prediction ({error!r}); {hint}") from None
        predictions[prediction.id] = prediction
    return list(predictions.values())


def unfinished_tasks(header: EvaluationHeader, predictions: Iterable[Prediction]) -> dict[str, tuple[int, int]]:
    """Task -> number of questions answered, and `TaskRecord.asked`, for each task with fewer answers than asked."""
    answered = Counter(each.task for each in predictions)
    asked = {task: record.asked or 0 for task, record in header.tasks.items()}
    return {task: (answered[task], count) for task, count in asked.items() if answered[task] < count}


def refuse_other_scores(out: Path) -> None:
    """Refuse an output folder that has files but no evaluation."""
    if is_main_process() and not (out / SETTINGS).exists():
        refuse_used(out)


def questions_in_common(runs: Sequence[Evaluation]) -> tuple[QuestionIds, str]:
    """Ids, by task, of the questions that all of ``runs`` answered; the hash of the task's data has to agree as well.

    The second value is a line that says what was left out, empty if nothing was.
    """
    shared: dict[str, set[str]] = {}
    left_out = []
    for task in dict.fromkeys(chain.from_iterable(run.tasks for run in runs)):
        answered = [_answered_by(run, task) for run in runs]
        by_all = set.intersection(*answered)
        by_some = set.union(*answered)
        if by_all:
            shared[task] = {id for _, id in by_all}
        missing = len(by_some) - len(by_all)
        if missing:
            left_out.append(f"{missing:,} of {task}" if by_all else task)
    if not left_out:
        return shared, ""
    count = sum(len(ids) for ids in shared.values())
    both = f"the {counted(count, 'question')} that all answered" if count else "nothing"
    return shared, f"compared on {both}; left out: {some(left_out, most=8)}"


def _answered_by(run: Evaluation, task: str) -> set[tuple[str | None, str]]:
    """For each question of a task that a run answered, the hash of the task's data, and the question's id."""
    data = run.data.get(task)
    return {(data, id) for id in run.tasks[task].ids} if task in run.tasks else set()
