"""From predictions to numbers: accuracies with their errors, averages, and the difference of two runs.

No model and no torch: everything here can be recomputed from ``predictions.jsonl``.
"""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moslora.errors import MosloraError, UsageError
from moslora.evaluation.predictions import METRICS, Prediction, mean_and_error

RESULTS = "results.json"


@dataclass(frozen=True)
class Score:
    """The numbers of one task, or of an average over tasks. Shares are between 0 and 1.

    Attributes:
        n: questions.
        accuracy: share of right answers.
        standard_error: of ``accuracy``: sample standard deviation / √n; ``None`` below two questions.
        majority_class: accuracy of always giving the most frequent label of these questions.
        truncated: questions whose prompt lost its beginning.
        accuracy_per_character: cloze only.
        standard_error_per_character: cloze only.
        log_probability: mean of the right option's log-probability among the options, nats; not for generate.
        parse_rate: share of generated texts in which an answer was found; generate only.
        drift: largest change of a margin between a question alone and in its batch, over a sample of the task
            (an average holds the largest of its tasks), in units of a deciding score; not for generate.
        close_calls: questions whose margin is below their task's drift; not for generate.
    """

    n: int
    accuracy: float
    standard_error: float | None
    majority_class: float
    truncated: int
    accuracy_per_character: float | None = None
    standard_error_per_character: float | None = None
    log_probability: float | None = None
    parse_rate: float | None = None
    drift: float | None = None
    close_calls: int | None = None


def score_task(predictions: Sequence[Prediction], *, drift: float | None) -> Score:
    """The numbers of one task from its predictions (at least one) and its drift."""
    n = len(predictions)
    accuracy, error = mean_and_error([METRICS["accuracy"](p) for p in predictions])
    score = Score(
        n=n,
        accuracy=accuracy,
        standard_error=error,
        majority_class=max(Counter(p.gold for p in predictions).values()) / n,
        truncated=sum(p.truncated for p in predictions),
    )
    if not predictions[0].scores:
        return dataclasses.replace(score, parse_rate=sum(bool(p.answer) for p in predictions) / n)
    score = dataclasses.replace(
        score,
        log_probability=mean_and_error([METRICS["log_probability"](p) for p in predictions])[0],
        drift=drift,
        close_calls=None if drift is None else sum(p.margin < drift for p in predictions),
    )
    if not predictions[0].characters:
        return score
    accuracy, error = mean_and_error([METRICS["accuracy_per_character"](p) for p in predictions])
    return dataclasses.replace(score, accuracy_per_character=accuracy, standard_error_per_character=error)


def average(scores: Sequence[Score], weights: Sequence[float]) -> Score:
    """x = Σ w x_t over tasks, with the standard error √(Σ w² se_t²); counts are added.

    Macro: w = 1 / tasks. Micro: w = n_t / Σ n, every question the same, the tasks as strata.
    """

    def mean(name: str) -> Any:  # a float, or None where the field may be None
        values = [getattr(score, name) for score in scores]
        return None if None in values else math.fsum(w * x for w, x in zip(weights, values, strict=True))

    def error(name: str) -> float | None:
        values = [getattr(score, name) for score in scores]
        if None in values:
            return None
        return math.sqrt(math.fsum((w * x) ** 2 for w, x in zip(weights, values, strict=True)))

    drifts = [score.drift for score in scores if score.drift is not None]
    close_calls = [score.close_calls for score in scores if score.close_calls is not None]
    return Score(
        n=sum(score.n for score in scores),
        accuracy=mean("accuracy"),
        standard_error=error("standard_error"),
        majority_class=mean("majority_class"),
        truncated=sum(score.truncated for score in scores),
        accuracy_per_character=mean("accuracy_per_character"),
        standard_error_per_character=error("standard_error_per_character"),
        log_probability=mean("log_probability"),
        parse_rate=mean("parse_rate"),
        drift=max(drifts, default=None),
        close_calls=sum(close_calls) if close_calls else None,
    )


@dataclass(frozen=True)
class Settings:
    """All that a prediction depends on besides its question: predictions under equal settings may be mixed.

    Attributes:
        protocol: rank, cloze or generate.
        format: name of the prompt format.
        primary: the metric that counts, a key of `METRICS`.
        dtype: of the model's computation.
        batch_size: sequences per forward pass.
        block_size: questions per block.
        beams: of generate; ``None`` otherwise.
        max_length: longest sequence in tokens; ``None`` for no bound, of a model that names no context.
        data: task -> sha256 of all its questions.
        metadata: what the caller says of the model: all that tells one model from another, no time of day.
    """

    protocol: str
    format: str
    primary: str
    dtype: str
    batch_size: int
    block_size: int
    beams: int | None
    max_length: int | None
    data: Mapping[str, str]
    metadata: Mapping[str, Any]

    @property
    def precision(self) -> str:
        """The dtype, and how the base is quantised where the caller says that it is."""
        quantization = self.metadata.get("quantization")
        return f"{self.dtype} on {quantization}" if quantization else self.dtype


@dataclass(frozen=True)
class Leaks:
    """Questions that the training rows give away: with their choices and the right answer.

    Attributes:
        compared_with: the training rows, in words.
        ids: of these questions, asked or not.
    """

    compared_with: str
    ids: frozenset[str]


@dataclass(frozen=True)
class WithoutLeaks:
    """The numbers once more, of the questions that the training rows do not give away.

    Attributes:
        compared_with: the training rows, in words.
        leaks: task -> questions left out.
        tasks: by task; none of a task whose questions are all leaks.
        macro: every task the same weight; ``None`` if a task has no question left.
    """

    compared_with: str
    leaks: Mapping[str, int]
    tasks: Mapping[str, Score]
    macro: Score | None


@dataclass(frozen=True)
class Results:
    """One evaluation, as ``results.json`` holds it.

    Attributes:
        settings: under which it was made.
        limit: questions per task, ``None`` for all.
        tasks: by task, in the order asked for.
        macro: every task the same weight.
        micro: every question the same weight.
        without_leaks: ``None`` where the training rows were not there to compare with.
        predictions: of the questions asked for; not in ``results.json``.
    """

    settings: Settings
    limit: int | None
    tasks: Mapping[str, Score]
    macro: Score
    micro: Score
    without_leaks: WithoutLeaks | None = None
    predictions: tuple[Prediction, ...] = dataclasses.field(default=(), repr=False, compare=False)

    @property
    def drift(self) -> float | None:
        """The largest drift of any task; ``None`` for generate."""
        return self.macro.drift

    def to_json(self) -> str:
        """The text of ``results.json``. Numbers that the protocol does not have are left out."""
        fields = {name: value for name, value in vars(self).items() if name != "predictions"}
        return json.dumps(fields, default=_known, indent=2, ensure_ascii=False) + "\n"

    def leak_line(self) -> str | None:
        """The primary metric without the leaks, in percent; ``None`` if there are none."""
        found = self.without_leaks
        if found is None or not any(found.leaks.values()):
            return None
        counts = {task: count for task, count in found.leaks.items() if count}
        scores = {**{task: found.tasks.get(task) for task in counts}, "macro average": found.macro}
        error = self.settings.primary.replace("accuracy", "standard_error")
        values = [
            f"{name} {_percent(getattr(score, self.settings.primary, None), getattr(score, error, None))}"
            for name, score in scores.items()
        ]
        return (
            f"questions among {found.compared_with}: {', '.join(f'{task} {count}' for task, count in counts.items())};"
            f" {self.settings.primary.replace('_', ' ')} without them: {', '.join(values)}"
        )

    def table(self) -> list[list[str]]:
        """Header, one row per task, macro, micro: shares in percent, ± one standard error."""
        columns: list[tuple[str, Callable[[Score], str]]] = [
            ("n", lambda s: f"{s.n:,}"),
            ("majority class", lambda s: _percent(s.majority_class)),
            ("accuracy", lambda s: _percent(s.accuracy, s.standard_error)),
        ]
        if self.macro.accuracy_per_character is not None:
            columns.append(
                (
                    "per character",
                    lambda s: _percent(s.accuracy_per_character, s.standard_error_per_character),
                )
            )
        if self.macro.log_probability is not None:
            columns.append(("log-probability", lambda s: f"{s.log_probability:.3f}"))
        if self.macro.parse_rate is not None:
            columns.append(("parsed", lambda s: _percent(s.parse_rate)))
        if self.macro.close_calls is not None:
            columns.append(("close calls", lambda s: str(s.close_calls)))
        scores = {**self.tasks, "macro average": self.macro, "micro average": self.micro}
        header = ["task", *(title for title, _ in columns)]
        return [header, *([name, *(cell(score) for _, cell in columns)] for name, score in scores.items())]


def summarise(
    settings: Settings,
    predictions: Sequence[Prediction],
    *,
    limit: int | None,
    drifts: Mapping[str, float] | None,
    leaks: Leaks | None = None,
) -> Results:
    """All numbers of an evaluation; tasks in the order of the predictions; ``drifts`` by task."""
    by_task: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        by_task.setdefault(prediction.task, []).append(prediction)
    tasks = {task: score_task(rows, drift=drifts[task] if drifts else None) for task, rows in by_task.items()}
    scores = list(tasks.values())
    return Results(
        settings=settings,
        limit=limit,
        tasks=tasks,
        macro=average(scores, [1 / len(scores)] * len(scores)),
        micro=average(scores, [score.n / len(predictions) for score in scores]),
        without_leaks=_without(leaks, by_task, drifts) if leaks else None,
        predictions=tuple(predictions),
    )


def _without(
    leaks: Leaks, by_task: Mapping[str, Sequence[Prediction]], drifts: Mapping[str, float] | None
) -> WithoutLeaks:
    kept = {task: [p for p in rows if p.id not in leaks.ids] for task, rows in by_task.items()}
    tasks = {task: score_task(rows, drift=drifts[task] if drifts else None) for task, rows in kept.items() if rows}
    return WithoutLeaks(
        compared_with=leaks.compared_with,
        leaks={task: len(rows) - len(kept[task]) for task, rows in by_task.items()},
        tasks=tasks,
        macro=average(list(tasks.values()), [1 / len(tasks)] * len(tasks)) if len(tasks) == len(by_task) else None,
    )


def load_results(path: Path) -> Results:
    """Reads ``results.json``, given itself or its folder; without the predictions.

    Raises:
        UsageError: there is none.
        MosloraError: it is not what `Results.to_json` writes.
    """
    file = path / RESULTS if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"{file}: no results here; `moslora eval` writes them")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        values["settings"] = Settings(**values["settings"])
        values["tasks"] = _scores(values["tasks"])
        if found := values.get("without_leaks"):
            macro = Score(**found["macro"]) if found["macro"] else None
            values["without_leaks"] = WithoutLeaks(**found | {"tasks": _scores(found["tasks"]), "macro": macro})
        return Results(**values | {name: Score(**values[name]) for name in ("macro", "micro")})
    except (ValueError, KeyError, TypeError) as error:
        raise MosloraError(f"{file}: not the results of an evaluation ({error}); evaluate again") from None


def _scores(values: Mapping[str, Mapping[str, Any]]) -> dict[str, Score]:
    return {task: Score(**score) for task, score in values.items()}


def _known(value: Any) -> Any:
    """A dataclass as a dict. ``None`` fields of scores are left out; elsewhere it is a value."""
    fields = vars(value)
    return {k: v for k, v in fields.items() if v is not None} if isinstance(value, Score) else fields


def _percent(share: float | None, error: float | None = None) -> str:
    """0.6615 as ``66.2``, with an error of 0.021 as ``66.2 ± 2.1``."""
    if share is None:
        return "–"
    return f"{100 * share:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")
