"""Results: all numbers of an evaluation, computed from its answers. No program reads ``results.json``."""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from moslora.runs.answers import TaskAnswers, by_task
from moslora.runs.conditions import Conditions, EvaluationHeader, TaskRecord
from moslora.runs.evaluation import Evaluation
from moslora.runs.intervals import percent
from moslora.runs.predictions import Prediction
from moslora.runs.scores import Score, TextScore, average, score_task, score_texts

NEARLY_ALL = 0.95
"""Collapse: one answer for at least this share of the questions, or an answer in less than this share of the texts."""

LEVEL = 0.01
"""Level of the one-sided test whether a task is below its majority class."""

FEWEST = 10
"""Fewest independent questions of a task that can show a collapse."""


@dataclass(frozen=True)
class WithoutLeaks:
    """Scores over the questions that are not leaks, which means that no training row equals them."""

    compared_with: str  # as in `Leaks`
    leaks: Mapping[str, int]  # task -> number of questions left out
    tasks: Mapping[str, Score]  # without tasks that have only leaks
    macro: Score | None  # average with equal weights of the tasks; ``None`` if a task has only leaks


@dataclass(frozen=True)
class Results:
    """Numbers of one evaluation."""

    conditions: Conditions
    tasks: Mapping[str, Score]  # of questions, in the order of evaluation
    macro: Score | None  # average with equal weights of the tasks; ``None`` without tasks
    micro: Score | None  # average with equal weights of the questions
    without_leaks: WithoutLeaks | None = None  # ``None`` if the leaks of a task are unknown
    texts: Mapping[str, TextScore] = field(default_factory=dict)  # sets of texts
    unanswered: Mapping[str, int] = field(default_factory=dict)  # task -> number of questions that a server refused
    # source of the numbers; not in ``results.json``
    predictions: tuple[Prediction, ...] = field(default=(), repr=False, compare=False)

    @property
    def scores(self) -> dict[str, Score | TextScore]:
        """Scores of all tasks: of questions, then of texts."""
        return {**self.tasks, **self.texts}

    @property
    def metric(self) -> str:
        """Name of the main accuracy, `Score.main` of the tasks."""
        divided = any(score.accuracy_per_character is not None for score in self.tasks.values())
        return "accuracy per character" if divided else "accuracy"

    @property
    def collapse(self) -> list[str]:
        """Lines with signs that the model answers without reading the questions, and the tasks that show them.

        The signs: a task below its majority class by `below_majority`; one answer for nearly all questions, unless it
        is right for nearly all; an answer in few generated texts, on average over the tasks that have texts.
        """
        below = []
        same = []
        for name, score in self.tasks.items():
            if (score.clusters or score.n) < FEWEST:
                continue
            if score.below_majority is not None and score.below_majority <= LEVEL:
                below.append(f"{name} {percent(score.main.value)} against {percent(score.majority_class)}")
            # Accuracy of one answer to every question. In words it is unknown, but at most the accuracy itself.
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

    def to_json(self) -> str:
        """Text of ``results.json``, without numbers that the protocol does not have."""
        optional = ("texts", "unanswered")
        fields = {name: value for name, value in vars(self).items() if value or name not in optional}
        del fields["predictions"]
        fields = {"settings": fields.pop("conditions"), **fields}
        return json.dumps(fields, default=_plain, indent=2, ensure_ascii=False) + "\n"


def _plain(value: Any) -> dict[str, Any]:
    """Fields of an object in the results, without those of a `Score` that are ``None``, and without ``clusters`` of a
    `TextScore` if that is ``None``."""
    fields = dict(vars(value))
    if isinstance(value, Score):
        return {name: number for name, number in fields.items() if number is not None}
    if isinstance(value, TextScore) and value.clusters is None:
        del fields["clusters"]
    return fields


def results_of(evaluation: Evaluation) -> Results:
    """Compute all numbers of an evaluation, by task in the order of its records.

    A task without single predictions, as in the tables of an experiment, has no numbers.
    """
    scores: dict[str, Score] = {}
    texts: dict[str, TextScore] = {}
    for task, record in evaluation.records.items():
        answers = evaluation.tasks.get(task)
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
        without = _without_leaks(evaluation, scores)
    assert evaluation.conditions is not None, "only answers with conditions are scored"
    return Results(evaluation.conditions, scores, macro, micro, without, texts)


def _without_leaks(evaluation: Evaluation, tasks: Collection[str]) -> WithoutLeaks | None:
    """Compute the numbers of ``tasks`` without leaks, the test questions that are also training rows; ``None`` if the
    leaks of a task are unknown."""
    kept: dict[str, TaskAnswers] = {}
    counts: dict[str, int] = {}
    compared_with: dict[str, None] = {}
    for task in tasks:
        answers = evaluation.tasks[task]
        leaks = evaluation.records[task].leaks
        if leaks is None:
            return None
        compared_with[leaks.compared_with] = None
        kept[task] = answers.only(set(answers.ids).difference(leaks.ids))
        counts[task] = len(answers.ids) - len(kept[task].ids)
    records = {task: replace(record, leaks=None) for task, record in evaluation.records.items()}
    rest = results_of(replace(evaluation, tasks=kept, records=records))
    macro = rest.macro if len(rest.tasks) == len(tasks) else None
    return WithoutLeaks(" and ".join(compared_with), counts, rest.tasks, macro)


def summarise(conditions: Conditions, predictions: Sequence[Prediction], records: Mapping[str, TaskRecord]) -> Results:
    """Compute all numbers of ``predictions``, in the order of ``records``."""
    answers = EvaluationHeader(conditions, records).grouped(by_task(predictions))
    results = results_of(Evaluation(Path(), conditions, answers, records))
    unanswered = Counter(prediction.task for prediction in predictions if prediction.refused)
    return replace(results, unanswered=dict(unanswered), predictions=tuple(predictions))
