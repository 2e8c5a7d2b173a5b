"""From predictions to numbers: accuracies with their errors, averages, and the difference of two runs.

No model and no torch: everything here can be recomputed from ``predictions.jsonl``.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moslora.errors import MosloraError, UsageError
from moslora.evaluation.predictions import Prediction
from moslora.evaluation.scores import Score, macro, micro, percent, score_task
from moslora.evaluation.without_leaks import Leaks, WithoutLeaks, joined_leaks, without

RESULTS = "results.json"


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
class Results:
    """One evaluation, as ``results.json`` holds it.

    Attributes:
        settings: under which it was made.
        limits: task -> most questions asked for, ``None`` for all.
        tasks: by task, in the order asked for.
        macro: every task the same weight.
        micro: every question the same weight.
        without_leaks: ``None`` where the training rows were not there to compare with.
        predictions: of the questions asked for; not in ``results.json``.
    """

    settings: Settings
    limits: Mapping[str, int | None]
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
        return self.without_leaks.line(self.settings.primary) if self.without_leaks else None

    def table(self) -> list[list[str]]:
        """Header, one row per task, macro, micro: shares in percent, ± one standard error."""
        columns: list[tuple[str, Callable[[Score], str]]] = [
            ("n", lambda s: f"{s.n:,}"),
            ("majority class", lambda s: percent(s.majority_class)),
            ("accuracy", lambda s: percent(s.accuracy, s.standard_error)),
        ]
        if self.macro.accuracy_per_character is not None:
            columns.append(
                (
                    "per character",
                    lambda s: percent(s.accuracy_per_character, s.standard_error_per_character),
                )
            )
        if self.macro.log_probability is not None:
            columns.append(("log-probability", lambda s: f"{s.log_probability:.3f}"))
        if self.macro.parse_rate is not None:
            columns.append(("parsed", lambda s: percent(s.parse_rate)))
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
        limits=dict.fromkeys(tasks, limit),
        tasks=tasks,
        macro=macro(scores),
        micro=micro(scores),
        without_leaks=without(leaks, by_task, drifts) if leaks else None,
        predictions=tuple(predictions),
    )


def joined(before: Results, now: Results) -> Results:
    """``now``, with the tasks that only ``before`` has, or has more questions of; without the predictions.

    Questions are taken in one fixed order, so that the wider of two evaluations of a task holds the narrower.

    Args:
        before: of an earlier evaluation under the same settings.
        now: of this one.
    """
    new = [task for task, score in now.tasks.items() if task not in before.tasks or score.n >= before.tasks[task].n]
    tasks = {**before.tasks, **{task: now.tasks[task] for task in new}}
    return Results(
        settings=dataclasses.replace(now.settings, data={**before.settings.data, **now.settings.data}),
        limits={task: (now if task in new else before).limits[task] for task in tasks},
        tasks=tasks,
        macro=macro(list(tasks.values())),
        micro=micro(list(tasks.values())),
        without_leaks=joined_leaks(before.without_leaks, now.without_leaks, new=new, tasks=list(tasks)),
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
        values["limits"] = {task: values["limits"][task] for task in values["tasks"]}
        if found := values.get("without_leaks"):
            macro = Score(**found["macro"]) if found["macro"] else None
            values["without_leaks"] = WithoutLeaks(**found | {"tasks": _scores(found["tasks"]), "macro": macro})
        return Results(**values | {name: Score(**values[name]) for name in ("macro", "micro")})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MosloraError(f"{file}: not the results of an evaluation ({error}); evaluate again") from None


def _scores(values: Mapping[str, Mapping[str, Any]]) -> dict[str, Score]:
    return {task: Score(**score) for task, score in values.items()}


def _known(value: Any) -> Any:
    """A dataclass as a dict. ``None`` fields of scores are left out; elsewhere it is a value."""
    fields = vars(value)
    return {k: v for k, v in fields.items() if v is not None} if isinstance(value, Score) else fields
