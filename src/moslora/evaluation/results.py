"""The numbers of an evaluation, all computed from its answers: ``results.json``."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from moslora.errors import MosloraError, UsageError, first_line
from moslora.evaluation.percent import percent
from moslora.evaluation.scores import Score, average, score_task
from moslora.evaluation.texts import TextScore, score_texts
from moslora.runs.answers import TaskAnswers, by_task
from moslora.runs.conditions import Conditions
from moslora.runs.header import EvaluationHeader, TaskRecord
from moslora.runs.predictions import Prediction
from moslora.runs.run import RESULTS

NEARLY_ALL = 0.95
"""Share of one answer from which a model counts as collapsed, and of texts with an answer below which it does."""

LEVEL = 0.01
"""Of the one-sided test that a task is below its majority class."""

FEWEST = 10
"""Independent questions of a task below which such a sign would be a matter of chance."""


@dataclass(frozen=True)
class WithoutLeaks:
    """The numbers of the questions that are not leaks."""

    compared_with: str  # as in `Leaks`
    leaks: Mapping[str, int]  # task -> number of questions left out
    tasks: Mapping[str, Score]  # without tasks that have only leaks
    macro: Score | None  # every task the same weight; ``None`` if a task has only leaks


@dataclass(frozen=True)
class Results:
    """One evaluation, or in ``results.json`` all evaluations of a folder."""

    conditions: Annotated[Conditions, Field(alias="settings")]
    tasks: Mapping[str, Score]  # of questions, in the order of evaluation
    macro: Score | None  # every one of ``tasks`` has the same weight; ``None`` if there are none
    micro: Score | None  # every question has the same weight
    without_leaks: WithoutLeaks | None = None  # ``None`` if the leaks of a task are unknown
    texts: Mapping[str, TextScore] = field(default_factory=dict)  # sets of texts
    unanswered: Mapping[str, int] = field(default_factory=dict)  # questions of each task that a server has refused
    # behind the numbers; not in ``results.json``
    predictions: tuple[Prediction, ...] = field(default=(), repr=False, compare=False)

    @property
    def scores(self) -> dict[str, Score | TextScore]:
        """Of questions and of texts."""
        return {**self.tasks, **self.texts}

    @property
    def metric(self) -> str:
        """The metric that counts: the protocol's, or the accuracy where everything is answered in words."""
        if self.tasks and all(score.is_in_words for score in self.tasks.values()):
            return "accuracy"
        return self.conditions.primary

    @property
    def collapse(self) -> list[str]:
        """Signs that the model answers without reading, a line for each kind, with the tasks: a task below its majority
        class by `below_majority`, not an average, as each task's majority class was chosen by these questions; one
        answer for nearly everything, where it is not right for nearly everything; few written texts with an answer, on
        average over the tasks that have texts."""
        below = []
        same = []
        for name, score in self.tasks.items():
            if (score.clusters or score.n) < FEWEST:
                continue
            if score.below_majority is not None and score.below_majority <= LEVEL:
                value, _ = score.value(self.metric)
                below.append(f"{name} {percent(value)} against {percent(score.majority_class)}")
            # The accuracy of one answer to everything: in words, where nobody knows it, at most the accuracy itself.
            best = score.accuracy if score.majority_class is None else score.majority_class
            if score.same_answer is not None and score.same_answer >= NEARLY_ALL > best:
                same.append(f"{name} {percent(score.same_answer)} %")
        lines = []
        if below:
            lines.append(f"below the majority class ({100 * LEVEL:g} %, one-sided): {', '.join(below)}")
        if same:
            lines.append(f"one answer for nearly everything: {', '.join(same)}")
        parse_rates = [score.parse_rate for score in self.tasks.values() if score.parse_rate is not None]
        if parse_rates and fmean(parse_rates) < NEARLY_ALL:
            lines.append(f"only {percent(fmean(parse_rates))} % of the texts have an answer")
        return lines

    def summary(self) -> dict[str, Any]:
        """For the run's card: the main metric with its error and the majority class, and signs of a collapse; and the
        nats per byte of texts."""
        metric = self.metric
        facts: dict[str, Any] = {"metric": metric}
        if self.macro is not None:
            value, _ = self.macro.value(metric)
            facts |= {
                "questions": self.macro.n,
                "macro": value,
                "standard_error": self.macro.number(metric.replace("accuracy", "standard_error")),
                "majority_class": self.macro.majority_class,
            }
        facts["tasks"] = {task: score.value(metric)[0] for task, score in self.tasks.items()}
        if self.texts:
            facts["nats_per_byte"] = {name: score.nats_per_byte for name, score in self.texts.items()}
        facts["asked"] = {task: [score.n, self.conditions.data.get(task)] for task, score in self.scores.items()}
        facts["collapse"] = self.collapse
        return {name: fact for name, fact in facts.items() if fact is not None}

    def to_json(self) -> str:
        """The text of ``results.json``. Numbers that the protocol does not have are omitted."""
        optional = ("texts", "unanswered")
        fields = {name: value for name, value in vars(self).items() if value or name not in optional}
        del fields["predictions"]
        fields = {"settings": fields.pop("conditions"), **fields}
        return json.dumps(fields, default=_plain, indent=2, ensure_ascii=False) + "\n"


def _plain(value: Any) -> dict[str, Any]:
    """The fields of a part of the results; of a score those that it has."""
    fields = dict(vars(value))
    if isinstance(value, Score):
        return {name: number for name, number in fields.items() if number is not None}
    if isinstance(value, TextScore) and value.clusters is None:
        del fields["clusters"]
    return fields


def results_of(conditions: Conditions, tasks: Mapping[str, TaskAnswers], records: Mapping[str, TaskRecord]) -> Results:
    """All numbers of the answers to these ``tasks``; ``records`` by task, in whose order the tasks are. A task of which
    only outcomes are known, and no answers, has none."""
    scores: dict[str, Score] = {}
    texts: dict[str, TextScore] = {}
    for task, record in records.items():
        answers = tasks.get(task)
        if answers is None or not answers.prediction:
            continue
        if answers.are_texts:
            texts[task] = score_texts(answers)
        else:
            scores[task] = score_task(answers, drift=record.drift)
    macro = micro = without = None
    if scores:
        averaged = list(scores.values())
        questions = sum(score.n for score in averaged)
        macro = average(averaged, [1 / len(averaged)] * len(averaged))
        micro = average(averaged, [score.n / questions for score in averaged])
        without = _without_leaks(conditions, {task: tasks[task] for task in scores}, records)
    return Results(conditions, scores, macro, micro, without, texts)


def _without_leaks(
    conditions: Conditions, tasks: Mapping[str, TaskAnswers], records: Mapping[str, TaskRecord]
) -> WithoutLeaks | None:
    """The numbers of the answers that are not to leaks; ``None`` if the leaks of a task are unknown."""
    kept: dict[str, TaskAnswers] = {}
    counts: dict[str, int] = {}
    compared_with: dict[str, None] = {}
    for task, answers in tasks.items():
        leaks = records[task].leaks
        if leaks is None:
            return None
        compared_with[leaks.compared_with] = None
        kept[task] = answers.only(set(answers.ids).difference(leaks.ids))
        counts[task] = len(answers.ids) - len(kept[task].ids)
    rest = results_of(conditions, kept, {task: replace(records[task], leaks=None) for task in tasks})
    macro = rest.macro if len(rest.tasks) == len(tasks) else None
    return WithoutLeaks(" and ".join(compared_with), counts, rest.tasks, macro)


def summarise(conditions: Conditions, predictions: Sequence[Prediction], records: Mapping[str, TaskRecord]) -> Results:
    """All numbers of ``predictions``, with these behind them; ``records`` by task, in whose order the tasks are."""
    answers = EvaluationHeader(conditions, records).grouped(by_task(predictions))
    results = results_of(conditions, answers, records)
    unanswered = Counter(prediction.task for prediction in predictions if prediction.refused)
    return replace(results, unanswered=dict(unanswered), predictions=tuple(predictions))


def read_results(folder: Path) -> Results:
    """The content of ``results.json``, without the predictions."""
    file = folder / RESULTS
    if not file.is_file():
        raise UsageError(f"{file}: no results here; `moslora eval` writes them")
    try:
        return TypeAdapter(Results).validate_json(file.read_bytes())
    except ValidationError as error:
        fault = first_line(error)
        raise MosloraError(f"{file}: not the results of an evaluation ({fault}); evaluate again") from None
