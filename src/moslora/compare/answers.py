"""What a comparison needs of a run: how it was trained and asked, and its answer to every question.

A file of this is small enough to commit, so that an experiment can be compared without its run folders:

``experiment.json``                  the arms' contrast and outcome, and a line per run
``results/ARM-RATE-SEED.json``       the `Outcomes` of one run
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from moslora.errors import MosloraError, UsageError
from moslora.evaluation.journal import load_predictions, read_head
from moslora.evaluation.predictions import METRICS, Prediction
from moslora.evaluation.results import Settings
from moslora.files import write_text

Outcome = Literal["accuracy", "log_probability"]
"""The number of a question that is compared.

``accuracy``: 1 if the answer is right, else 0, by the protocol's main metric (``cloze``: per character).
``log_probability``: log softmax(s)[right option] in nats, s the scores behind that metric (``cloze``: the options'
log-probabilities per character); it does not exist under ``generate``.
"""

Read = TypeVar("Read")

COMPARED = ("data", "trained_rows", "steps")
"""Facts of a run that a comparison reads: the same, however often and wherever it is trained."""

EXPERIMENT = "experiment.json"
RESULTS = "results"
"""The folder of the files of `Outcomes` in an experiment's."""


@dataclass(frozen=True)
class Answers:
    """A run's answers to the questions of one task, column by column, in the order of the ids.

    Attributes:
        ids: of the questions, sorted.
        gold: position of the right option.
        correct: 1 or 0, see `Outcome`.
        log_probability: see `Outcome`, to six digits; empty under ``generate``.
    """

    ids: tuple[str, ...]
    gold: tuple[int, ...]
    correct: tuple[int, ...]
    log_probability: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if {len(self.gold), len(self.correct), len(self.log_probability) or len(self.ids)} != {len(self.ids)}:
            raise ValueError("columns of different lengths")


@dataclass(frozen=True)
class Outcomes:
    """One evaluation of one run.

    Attributes:
        settings: how it was asked.
        tasks: task -> answers.
        recipe: how it was trained, every field; ``None`` for a model that is no run's, and for a base.
        facts: of its ``run.json``, :data:`COMPARED`; empty where ``recipe`` is ``None``.
        provenance: of whoever wrote the file, such as the version of the code; not read by a comparison.
    """

    settings: Settings
    tasks: Mapping[str, Answers]
    recipe: Mapping[str, Any] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.recipe is not None and not {"seed", "data", "training"} <= self.recipe.keys():
            raise ValueError("a recipe without seed, data or training")

    @property
    def seed(self) -> int | None:
        """Of its training."""
        return self.recipe["seed"] if self.recipe else None


@dataclass(frozen=True)
class ExperimentRun:
    """One line of ``experiment.json``; a run that ``diverged`` has no results."""

    arm: str
    seed: int
    learning_rate: float
    folder: str
    diverged: bool = False

    @property
    def results(self) -> str:
        """Its file of `Outcomes`, relative to the experiment's folder."""
        return f"{RESULTS}/{self.arm}-{self.learning_rate:g}-{self.seed}.json"


@dataclass(frozen=True)
class ExperimentIndex:
    """The content of ``experiment.json``; ``contrast`` is the comparison named beforehand: the second arm against the
    first."""

    name: str
    contrast: tuple[str, str]
    outcome: Outcome
    runs: tuple[ExperimentRun, ...]


def collect(evaluation: Path, *, recipe: Mapping[str, Any] | None, facts: Mapping[str, Any]) -> Outcomes:
    """The outcomes in the folder of one evaluation; ``recipe`` and ``facts`` (``run.json``) of its run."""
    predictions = load_predictions(evaluation)
    return outcomes_of(predictions, read_head(evaluation).settings, recipe=recipe, facts=facts)


def outcomes_of(
    predictions: Sequence[Prediction],
    settings: Settings,
    *,
    recipe: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Outcomes:
    """The outcomes of these predictions; a base is not trained, so that its run's recipe and facts are left out."""
    trained = settings.metadata.get("adapter") is not None
    tasks = _answers(predictions, METRICS[settings.primary])
    told = {key: value for key, value in (facts or {}).items() if key in COMPARED}
    return Outcomes(settings, tasks, recipe if trained else None, told if trained else {})


def _answers(predictions: Sequence[Prediction], accuracy: Callable[[Prediction], float]) -> dict[str, Answers]:
    by_task: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        by_task.setdefault(prediction.task, []).append(prediction)
    by_task = {task: sorted(rows, key=lambda p: p.id) for task, rows in by_task.items()}
    log_probability = METRICS["log_probability"]
    return {
        task: Answers(
            ids=tuple(p.id for p in rows),
            gold=tuple(p.gold for p in rows),
            correct=tuple(int(accuracy(p)) for p in rows),
            log_probability=tuple(round(log_probability(p), 6) for p in rows) if rows[0].scores else (),
        )
        for task, rows in by_task.items()
    }


def write_outcomes(path: Path, outcomes: Outcomes) -> None:
    """Writes a file of `Outcomes`, atomically."""
    write_text(path, TypeAdapter(Outcomes).dump_json(outcomes).decode() + "\n")


def read_outcomes(path: Path) -> Outcomes:
    """Reads what `write_outcomes` wrote."""
    return _read(path, TypeAdapter(Outcomes), what="the outcomes of a run")


def write_index(folder: Path, index: ExperimentIndex) -> None:
    """Writes ``experiment.json``, atomically."""
    write_text(folder / EXPERIMENT, TypeAdapter(ExperimentIndex).dump_json(index, indent=2).decode() + "\n")


def read_index(folder: Path) -> ExperimentIndex:
    """Reads what `write_index` wrote."""
    return _read(folder / EXPERIMENT, TypeAdapter(ExperimentIndex), what="an experiment")


def _read(path: Path, form: TypeAdapter[Read], *, what: str) -> Read:
    try:
        return form.validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        reason = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
        raise MosloraError(f"{path}: not {what} ({reason}); remove it and make it again") from None
