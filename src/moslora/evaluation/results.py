"""From predictions to numbers, all computed from the journal."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from moslora.errors import MosloraError, UsageError, counted, first_line
from moslora.evaluation.display import NONE, percent, percent_range
from moslora.evaluation.leaks import WithoutLeaks, without_leaks
from moslora.evaluation.scores import Score, macro, micro, score_task
from moslora.evaluation.texts import TextScore, score_texts
from moslora.runs.answers import TaskAnswers, by_task
from moslora.runs.predictions import Prediction
from moslora.runs.run import RESULTS
from moslora.runs.settings import Settings, TaskRecord

NEARLY_ALL = 0.95
"""Share of one answer from which a model counts as collapsed, and of texts with an answer below which it does."""

LEVEL = 0.01
"""Of the one-sided test that a task is below its majority class."""

FEWEST = 10
"""Questions of a task below which such a sign would be a matter of chance."""


@dataclass(frozen=True)
class Results:
    """One evaluation, or in ``results.json`` all evaluations of a folder."""

    settings: Settings
    tasks: Mapping[str, Score]  # multiple choice, in the order of evaluation
    macro: Score | None  # every one of ``tasks`` has the same weight; ``None`` if there are none
    micro: Score | None  # every question has the same weight
    without_leaks: WithoutLeaks | None = None  # ``None`` if the leaks of a task are unknown
    texts: Mapping[str, TextScore] = field(default_factory=dict)  # sets of texts
    # behind the numbers; not in ``results.json``
    predictions: tuple[Prediction, ...] = field(default=(), repr=False, compare=False)

    @property
    def collapse(self) -> list[str]:
        """Signs that the model answers without reading: a line for each kind of sign, with the tasks.

        A task below its majority class by `below_majority`, not an average, as each task's majority class was chosen by
        these questions; one answer for nearly everything, where it is not right for nearly everything; few texts with
        an answer.
        """
        below, same, parsed = [], [], self.macro.parse_rate if self.macro else None
        enough = {task: score for task, score in self.tasks.items() if score.n >= FEWEST}
        for name, score in enough.items():
            if score.below_majority is not None and score.below_majority <= LEVEL:
                value = score.value(self.settings.primary)[0]
                below.append(f"{name} {percent(value)} against {percent(score.majority_class)}")
            if (score.same_answer or 0) >= NEARLY_ALL > score.majority_class:
                same.append(f"{name} {percent(score.same_answer)} %")
        signs = {
            f"below the majority class ({100 * LEVEL:g} %, one-sided): " + ", ".join(below): below,
            "one answer for nearly everything: " + ", ".join(same): same,
            f"only {percent(parsed)} % of the texts have an answer": parsed is not None and parsed < NEARLY_ALL,
        }
        return [line for line, shown in signs.items() if shown]

    @property
    def heading(self) -> str:
        """The line above the table: protocol, format and precision."""
        settings, quantization = self.settings, self.settings.metadata.get("quantization")
        precision = f"{settings.dtype} on {quantization}" if quantization else settings.dtype
        return f"protocol {settings.protocol}, format {settings.format}, {precision}; shares in percent"

    def table(self) -> list[list[str]]:
        """Header, a row per task, and with several macro and micro: shares in percent, the interval of the main one;
        then the sets of texts."""

        def cells(score: Score) -> dict[str, str]:
            log_probability, close_calls = score.log_probability, score.close_calls
            return {
                "n": f"{score.n:,}",
                "majority class": percent(score.majority_class),
                "accuracy": percent(score.accuracy),
                "per character": percent(score.accuracy_per_character),
                "95 % interval": percent_range(score.value(self.settings.primary)[1]),
                "log p": NONE if log_probability is None else f"{log_probability:.3f}",
                "parsed": percent(score.parse_rate),
                "close calls": NONE if close_calls is None else str(close_calls),
            }

        def of_texts(score: TextScore) -> dict[str, str]:
            ends = NONE if score.interval is None else "{:.4f} to {:.4f}".format(*score.interval)
            return {"n": f"{score.n:,}", "nats per byte": f"{score.nats_per_byte:.4f}", "95 % interval": ends}

        averages = {"macro average": self.macro, "micro average": self.micro} if len(self.tasks) > 1 else {}
        rows = {name: cells(score) for name, score in {**self.tasks, **averages}.items() if score}
        rows |= {name: of_texts(score) for name, score in self.texts.items()}
        titles = dict.fromkeys(title for row in rows.values() for title, cell in row.items() if cell != NONE)
        return [["task", *titles], *([name, *(row.get(title, NONE) for title in titles)] for name, row in rows.items())]

    def remarks(self) -> list[str]:
        """Notes below the table: signs of a collapse, truncated questions, leaks, close calls."""
        lines = [f"collapse: {sign}" for sign in self.collapse]
        longest = f"longer than evaluation.max_length = {self.settings.max_length} tokens"
        questions_cut = self.macro.truncated if self.macro else 0
        texts_cut = sum(score.truncated for score in self.texts.values())
        if questions_cut:
            lines.append(f"{counted(questions_cut, 'question')} without the start, {longest}")
        if texts_cut:
            lines.append(f"{counted(texts_cut, 'text')} without the end, {longest}")
        if self.without_leaks and (line := self.without_leaks.line(self.settings.primary)):
            lines.append(line)
        if self.macro and self.macro.close_calls:
            close = counted(self.macro.close_calls, "answer")
            lines.append(
                f"{close} closer than the noise of the arithmetic ({self.macro.drift:.2g}); --dtype float32 decides"
            )
        return lines

    def summary(self) -> dict[str, Any]:
        """For the run's card: the main metric with its error and the majority class, and signs of a collapse; and the
        nats per byte of texts."""
        metric, macro = self.settings.primary, self.macro
        scores: dict[str, Score | TextScore] = {**self.tasks, **self.texts}
        facts = {
            "metric": metric,
            "questions": macro and macro.n,
            "macro": macro and macro.value(metric)[0],
            "standard_error": macro and getattr(macro, metric.replace("accuracy", "standard_error")),
            "majority_class": macro and macro.majority_class,
            "tasks": {task: score.value(metric)[0] for task, score in self.tasks.items()},
            "nats_per_byte": {name: score.nats_per_byte for name, score in self.texts.items()} or None,
            "asked": {task: [score.n, self.settings.data.get(task)] for task, score in scores.items()},
            "collapse": self.collapse,
        }
        return {name: fact for name, fact in facts.items() if fact is not None}

    def to_json(self) -> str:
        """The text of ``results.json``. Numbers that the protocol does not have are omitted."""

        def plain(value: Any) -> dict[str, Any]:  # only scores omit ``None``
            return {k: v for k, v in vars(value).items() if v is not None or not isinstance(value, Score)}

        left_out = ("predictions",) if self.texts else ("predictions", "texts")
        fields = {name: value for name, value in vars(self).items() if name not in left_out}
        return json.dumps(fields, default=plain, indent=2, ensure_ascii=False) + "\n"


def results_of(settings: Settings, tasks: Mapping[str, TaskAnswers], records: Mapping[str, TaskRecord]) -> Results:
    """All numbers of the answers to these ``tasks``; ``records`` by task, in whose order the tasks are."""
    scores: dict[str, Score] = {}
    texts: dict[str, TextScore] = {}
    for task, record in records.items():
        answers = tasks.get(task)
        if answers is None or not answers.ids:
            continue
        if answers.are_texts:
            texts[task] = score_texts(answers)
        else:
            scores[task] = score_task(answers, drift=record.drift)
    results = Results(settings, scores, macro=None, micro=None, texts=texts)
    if not scores:
        return results
    leaks = {}
    for task in scores:
        known = records[task].leaks
        if known is not None:
            leaks[task] = known
    without = None
    if len(leaks) == len(scores):
        questions = {task: tasks[task] for task in scores}
        drifts = {task: records[task].drift for task in scores}
        without = without_leaks(questions, leaks=leaks, drifts=drifts)
    averaged = list(scores.values())
    return replace(results, macro=macro(averaged), micro=micro(averaged), without_leaks=without)


def summarise(settings: Settings, predictions: Sequence[Prediction], records: Mapping[str, TaskRecord]) -> Results:
    """All numbers of ``predictions``, with these behind them; ``records`` by task, in whose order the tasks are."""
    results = results_of(settings, by_task(predictions), records)
    return replace(results, predictions=tuple(predictions))


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
