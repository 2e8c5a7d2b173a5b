"""An evaluation: how it was asked, and what was answered. Importing this does not load torch.

``settings.json``      what the predictions depend on, and a record per task (`moslora.runs.conditions`)
``predictions.jsonl``  one line per question (`moslora.runs.predictions`)
``results.json``       the numbers of the finished tasks, which is there once it is done

`moslora.evaluation.journal` writes the first two, and the third at the end.
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
from moslora.runs.conditions import Conditions, EvaluationHeader, LocalModel, TaskRecord, read_header
from moslora.runs.outcomes import with_outcomes
from moslora.runs.predictions import Prediction
from moslora.runs.run import EVALUATIONS, PREDICTIONS, RESULTS, SETTINGS, Run, base_of

QuestionIds = Mapping[str, Collection[str]]
"""Task -> the ids of some of its questions."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of one model, or some of its questions.

    Attributes:
        folder: where it lies, or the log of another program.
        conditions: under which it was asked; ``None`` of a log, which does not say.
        tasks: task -> answers, in the order in which the tasks were asked.
        records: task -> what else is known of it.
        unfinished: tasks of which it was interrupted: the number of questions answered, and asked.
        base: the base's answers to the same questions, if they are in the same table or lie beside it.
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
        """The evaluation that made these predictions, and has these records; the questions of every task in the order
        of their ids."""
        header = EvaluationHeader(conditions, records or {})
        tasks = {}
        for task, answers in by_task(predictions).items():
            in_order = sorted(range(len(answers.ids)), key=answers.ids.__getitem__)
            tasks[task] = with_outcomes(answers.at(in_order))
        return cls(folder, conditions, header.grouped(tasks), header.tasks)

    @property
    def run(self) -> Run | None:
        """The run that it is of; ``None`` of a model without a run, of a server, and of a log."""
        if self.weights is None:
            return None
        run = Run(self.folder.parent.parent)
        if self.folder.parent.name == EVALUATIONS and run.exists:
            return run
        return None

    @property
    def data(self) -> Mapping[str, str]:
        """Task -> hash of all its questions, of those that are known."""
        return self.conditions.data if self.conditions else {}

    @property
    def weights(self) -> LocalModel | None:
        """The model that answered; ``None`` of a server and of a log."""
        answered_by = self.conditions and self.conditions.answered_by
        return answered_by if isinstance(answered_by, LocalModel) else None

    @property
    def of_base(self) -> bool:
        """Whether it is of a model without an adapter."""
        return self.weights is None or self.weights.adapter is None

    @property
    def complete(self) -> "Evaluation":
        """Without the tasks of which it was interrupted."""
        return self.restricted_to(self.tasks.keys() - self.unfinished.keys())

    def only(self, questions: QuestionIds) -> "Evaluation":
        """The answers to these questions."""
        kept = {task: self.tasks[task].only(ids) for task, ids in questions.items() if task in self.tasks}
        return replace(self, tasks=kept)

    def planned_by(self, recipe: Recipe) -> "Evaluation":
        """What an evaluation that follows ``recipe`` has, as it may have been asked more."""
        return self.restricted_to([task.name for task in recipe.questions.tasks], recipe.evaluation.limit)

    def restricted_to(self, tasks: Collection[str], limit: int | None = None) -> "Evaluation":
        """What an evaluation of these tasks with this limit has."""
        kept = {task: answers.ids for task, answers in self.tasks.items() if task in tasks}
        if limit is not None:
            kept = {task: tuple(sorted(ids, key=order_key)[:limit]) for task, ids in kept.items()}
        return self.only(kept)


def is_evaluation(folder: Path) -> bool:
    """Whether there is an evaluation in ``folder``, finished or not."""
    return (folder / SETTINGS).is_file()


def is_finished(folder: Path) -> bool:
    """Whether the evaluation in ``folder`` came to its end at least once."""
    return (folder / RESULTS).is_file()


def read_evaluation(folder: Path) -> Evaluation:
    """The evaluation in ``folder``, with every outcome that its answers give. Each file is read once.

    Raises:
        UsageError: there are no predictions.
        MosloraError: a file is damaged.
    """
    header = read_header(folder)
    predictions = read_predictions(folder)
    evaluation = Evaluation.of(folder, header.conditions, predictions, header.tasks)
    return replace(evaluation, unfinished=unfinished_tasks(header, predictions))


def read_complete(folder: Path) -> Evaluation:
    """The evaluation in ``folder``, and that of its base beside it; without the tasks of which it was interrupted,
    which are noted."""
    evaluation = read_evaluation(folder)
    if evaluation.unfinished:
        tasks = [f"{task} ({answered:,} of {asked:,})" for task, (answered, asked) in evaluation.unfinished.items()]
        note_once(f"{folder}: interrupted and left out: {some(tasks)}; moslora eval continues it")
    base = base_of(folder)
    beside = read_complete(base) if base != folder and is_evaluation(base) else None
    return replace(evaluation.complete, base=beside)


def read_predictions(folder: Path) -> list[Prediction]:
    """The predictions in ``folder``, in the order in which they were written."""
    file = folder / PREDICTIONS
    if not file.is_file():
        raise UsageError(f"{file}: no predictions here; `moslora eval` writes them")
    predictions: dict[str, Prediction] = {}
    # Bytes that are not UTF-8 are replaced, so that the message can name their line.
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            prediction = Prediction.from_json(line)
            if prediction.id in predictions:
                raise ValueError(f"{prediction.id} is there twice")
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            hint = "remove the folder and evaluate again"
            raise MosloraError(f"{file}:{number}: not a prediction ({error!r}); {hint}") from None
        predictions[prediction.id] = prediction
    return list(predictions.values())


def unfinished_tasks(header: EvaluationHeader, predictions: Iterable[Prediction]) -> dict[str, tuple[int, int]]:
    """The tasks of which fewer questions are answered than the last evaluation asked: both numbers."""
    answered = Counter(each.task for each in predictions)
    asked = {task: record.asked or 0 for task, record in header.tasks.items()}
    return {task: (answered[task], count) for task, count in asked.items() if answered[task] < count}


def refuse_other_scores(out: Path) -> None:
    """Refuses a folder for an evaluation that holds anything else."""
    if is_main_process() and not (out / SETTINGS).exists():
        refuse_used(out)


def questions_in_common(runs: Sequence[Evaluation]) -> tuple[QuestionIds, str]:
    """The questions that all of ``runs`` answered: the same ids, in tasks of the same data; and a line that says what
    they are and what else was asked, empty if nothing was."""
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
    """The questions of a task that a run answered: their data and their ids."""
    data = run.data.get(task)
    return {(data, id) for id in run.tasks[task].ids} if task in run.tasks else set()
