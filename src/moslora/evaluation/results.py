"""From predictions to numbers, all computed from the journal."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from moslora.errors import MosloraError, UsageError, first_line
from moslora.evaluation.leaks import Leaks, WithoutLeaks, without_leaks
from moslora.evaluation.predictions import Prediction, Score, collapse, macro, micro, percent, score_task

RESULTS = "results.json"


@dataclass(frozen=True)
class Settings:
    """All that a prediction depends on besides its question: predictions with equal settings may be mixed.

    Attributes:
        primary: the metric that counts, a key of `METRICS`.
        dtype: of the model's computation.
        beams: of generate; ``None`` otherwise.
        max_length: longest sequence in tokens; ``None`` if the model states no context length.
        data: task -> sha256 of all its questions.
        metadata: from the caller: what identifies the model.
        made_with: versions of the packages, hashes of the tokenizer and the chat template; empty if not recorded.
    """

    protocol: str
    format: str
    primary: str
    dtype: str
    batch_tokens: int
    block_size: int
    beams: int | None
    max_length: int | None
    data: Mapping[str, str]
    metadata: Mapping[str, Any]
    made_with: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class TaskRecord:
    """Facts about a task besides its predictions.

    Attributes:
        drift: see `Score`; ``None`` for generate and before it is measured.
        leaks: of this task; ``None`` if the training rows are unknown.
    """

    drift: float | None = None
    leaks: Leaks | None = None

    def updated(self, later: "TaskRecord") -> "TaskRecord":
        """This record with a later evaluation's, which may have fewer questions and so a smaller drift."""
        drifts = [drift for drift in (self.drift, later.drift) if drift is not None]
        return TaskRecord(max(drifts, default=None), later.leaks or self.leaks)


@dataclass(frozen=True)
class Results:
    """One evaluation, or in ``results.json`` all evaluations of a folder.

    Attributes:
        tasks: in the order of evaluation.
        macro: every task has the same weight.
        micro: every question has the same weight.
        without_leaks: ``None`` if the leaks of a task are unknown.
        predictions: behind the numbers; not in ``results.json``.
    """

    settings: Settings
    tasks: Mapping[str, Score]
    macro: Score
    micro: Score
    without_leaks: WithoutLeaks | None = None
    predictions: tuple[Prediction, ...] = dataclasses.field(default=(), repr=False, compare=False)

    @property
    def collapse(self) -> list[str]:
        """Signs that the model answers without reading; none if it does not."""
        return collapse(self.tasks, self.macro, self.settings.primary)

    @property
    def heading(self) -> str:
        """The line above the table: protocol, format and precision."""
        settings, quantization = self.settings, self.settings.metadata.get("quantization")
        precision = f"{settings.dtype} on {quantization}" if quantization else settings.dtype
        return f"protocol {settings.protocol}, format {settings.format}, {precision}; shares in percent ± s.e."

    def table(self) -> list[list[str]]:
        """Header, one row per task, macro, micro: shares in percent, ± one standard error."""
        per_character = "accuracy_per_character"
        columns: list[tuple[str, str, Callable[[Score], str]]] = [
            ("n", "n", lambda s: f"{s.n:,}"),
            ("majority class", "majority_class", lambda s: percent(s.majority_class)),
            ("accuracy", "accuracy", lambda s: percent(s.accuracy, s.standard_error)),
            (
                "per character",
                per_character,
                lambda s: percent(getattr(s, per_character), s.standard_error_per_character),
            ),
            ("log-probability", "log_probability", lambda s: f"{s.log_probability:.3f}"),
            ("parsed", "parse_rate", lambda s: percent(s.parse_rate)),
            ("close calls", "close_calls", lambda s: str(s.close_calls)),
        ]
        shown = [(title, cell) for title, field, cell in columns if getattr(self.macro, field) is not None]
        scores = {**self.tasks, "macro average": self.macro, "micro average": self.micro}
        header = ["task", *(title for title, _ in shown)]
        return [header, *([name, *(cell(score) for _, cell in shown)] for name, score in scores.items())]

    def remarks(self) -> list[str]:
        """Notes below the table: signs of a collapse, truncated questions, leaks, close calls."""
        lines = [f"collapse: {sign}" for sign in self.collapse]
        if cut := self.macro.truncated:
            lines.append(
                f"{cut:,} questions are longer than evaluation.max_length = {self.settings.max_length} tokens"
                " and lost their start"
            )
        if self.without_leaks and (line := self.without_leaks.line(self.settings.primary)):
            lines.append(line)
        if close := self.macro.close_calls:
            lines.append(
                f"{close} answers are closer than the noise of the arithmetic ({self.macro.drift:.2g});"
                " --dtype float32 decides them"
            )
        return lines

    def summary(self) -> dict[str, Any]:
        """For the run's card: the main metric with its error and the majority class, and signs of a collapse."""
        metric = self.settings.primary
        return {
            "metric": metric,
            "questions": self.macro.n,
            "macro": getattr(self.macro, metric),
            "standard_error": getattr(self.macro, metric.replace("accuracy", "standard_error")),
            "majority_class": self.macro.majority_class,
            "tasks": {task: getattr(score, metric) for task, score in self.tasks.items()},
            "collapse": self.collapse,
        }

    def to_json(self) -> str:
        """The text of ``results.json``. Numbers that the protocol does not have are omitted."""

        def plain(value: Any) -> dict[str, Any]:  # only scores omit ``None``
            return {k: v for k, v in vars(value).items() if v is not None or not isinstance(value, Score)}

        fields = {name: value for name, value in vars(self).items() if name != "predictions"}
        return json.dumps(fields, default=plain, indent=2, ensure_ascii=False) + "\n"


def summarise(settings: Settings, predictions: Sequence[Prediction], records: Mapping[str, TaskRecord]) -> Results:
    """All numbers of ``predictions``; ``records`` by task. Tasks are in the order of the predictions."""
    by_task: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        by_task.setdefault(prediction.task, []).append(prediction)
    records = {task: records.get(task, TaskRecord()) for task in by_task}
    drifts = {task: record.drift for task, record in records.items()}
    tasks = {task: score_task(rows, drift=drifts[task]) for task, rows in by_task.items()}
    leaks = {task: record.leaks for task, record in records.items() if record.leaks}
    known = len(leaks) == len(tasks)
    return Results(
        settings=settings,
        tasks=tasks,
        macro=macro(list(tasks.values())),
        micro=micro(list(tasks.values())),
        without_leaks=without_leaks(by_task, leaks=leaks, drifts=drifts) if known else None,
        predictions=tuple(predictions),
    )


def load_results(path: Path) -> Results:
    """Reads ``results.json`` (``path`` is the file or its folder), without the predictions."""
    file = path / RESULTS if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"{file}: no results here; `moslora eval` writes them")
    try:
        return TypeAdapter(Results).validate_json(file.read_bytes())
    except ValidationError as error:
        raise MosloraError(f"{file}: not the results of an evaluation ({first_line(error)}); evaluate again") from None
