"""The conditions of an evaluation: which questions are asked, how, and which model answers. Loads no torch.

Each field is marked with what another value of it changes (`Changes`). Code that continues, compares or shares
evaluations selects fields by these marks. ``settings.json`` has the conditions and a record of each task.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from moslora.errors import MosloraError
from moslora.prompts.protocols import ProtocolName
from moslora.recipe.recipe import changed_keys, flat
from moslora.runs.answers import TaskAnswers
from moslora.runs.run import SETTINGS
from moslora.tasks.clusters import Clusters, known_clusters


class Changes(Enum):
    """Aspect of an evaluation that a field of its conditions determines."""

    ASKED = "how questions are asked"
    QUESTIONS = "which questions are asked"
    PLACE = "where questions or a base are stored"  # hashes identify their content
    COMMIT = "which commit of a base is on the disk"  # its fingerprint identifies what computes
    BASE = "which base computes, and in which precision"
    MODEL = "which adapter or server answers"
    COMPUTED = "how it is computed"
    TOKENS = "which tokens a text becomes"
    VERSIONS = "which packages compute"


AFFECTS_PREDICTIONS = tuple(mark for mark in Changes if mark not in (Changes.PLACE, Changes.COMMIT))
"""What an evaluation keeps when it is continued, and what its processes share."""

ENCODING = ("tokenizer", "chat_template")
"""Keys of `Conditions.encoding`."""


@dataclass(frozen=True)
class Weights:
    """Base and adapter of a model that this machine computed. The base is ``None`` for a model that a caller in Python
    passed."""

    dtype: Annotated[str, Changes.BASE]
    device: Annotated[str, Changes.COMPUTED]
    batch_tokens: Annotated[int, Changes.COMPUTED]  # maximum number of tokens of a batch
    block_size: Annotated[int, Changes.COMPUTED]  # number of questions that are computed together
    base: Annotated[str | None, Changes.PLACE] = None
    base_commit: Annotated[str, Changes.COMMIT] = ""  # commit of the base on the hub; empty for a local folder
    fingerprint: Annotated[str | None, Changes.BASE] = None  # fingerprint of the base
    adapter: Annotated[str | None, Changes.MODEL] = None  # sha256 of the adapter's weights
    quantization: Annotated[str | None, Changes.BASE] = None

    @property
    def is_exact(self) -> bool:
        """Whether the scores of a question are the same whatever else is in its batch.

        LLM.int8() takes columns with an outlier out of a whole batch.
        """
        return self.dtype in ("float32", "float64") and self.quantization != "int8"

    def __str__(self) -> str:
        return f"{self.dtype} on {self.quantization}" if self.quantization else self.dtype


@dataclass(frozen=True)
class Endpoint:
    """A model behind a server, whose computation is not known."""

    server: Annotated[str, Changes.MODEL]  # address
    model: Annotated[str, Changes.MODEL]  # name on the server; empty if it has only one model
    is_exact: ClassVar[bool] = True

    def __str__(self) -> str:
        return f"{self.model} at {self.server}" if self.model else self.server


@dataclass(frozen=True)
class Conditions:
    """Everything that a prediction depends on besides its question. Predictions under equal conditions may be mixed."""

    protocol: Annotated[ProtocolName, Changes.ASKED]
    format: Annotated[str, Changes.ASKED]
    max_length: Annotated[int | None, Changes.ASKED]  # tokens of a sequence; ``None`` for no limit
    data: Annotated[Mapping[str, str], Changes.QUESTIONS]  # task -> sha256 of all its questions
    answered_by: Weights | Endpoint
    # task -> number of questions that are skipped before the first, if any
    skipped: Annotated[Mapping[str, int], Changes.QUESTIONS] = field(default_factory=dict)
    source: Annotated[str, Changes.PLACE] = "wheel"  # source of the questions
    beams: Annotated[int | None, Changes.ASKED] = None  # number of beams of ``generate``
    # arguments of transformers' `GenerationConfig` for ``generate``
    writing: Annotated[Mapping[str, Any] | None, Changes.ASKED] = None
    encoding: Annotated[Mapping[str, str], Changes.TOKENS] = field(
        default_factory=dict
    )  # hashes: `data.encode.encoding`
    versions: Annotated[Mapping[str, str], Changes.VERSIONS] = field(default_factory=dict)  # package -> version

    def of_tasks(self, tasks: Collection[str]) -> "Conditions":
        """Return the conditions restricted to ``tasks``."""
        data = {task: sha256 for task, sha256 in self.data.items() if task in tasks}
        skipped = {task: self.skipped.get(task, 0) for task in data}
        return replace(self, data=data, skipped=skipped)

    def with_tasks_of(self, earlier: "Conditions") -> "Conditions":
        """Return these conditions with the tasks of ``earlier`` ones as well."""
        return replace(self, data={**earlier.data, **self.data}, skipped={**earlier.skipped, **self.skipped})

    def facts(self, *changing: Changes) -> dict[str, Any]:
        """Key -> value of the fields that determine one of the aspects ``changing``, also of the fields of
        `answered_by`."""
        facts = {}
        for record in (self, self.answered_by):
            for each in fields(record):
                if {*changing}.intersection(getattr(each.type, "__metadata__", ())):
                    facts[each.name] = getattr(record, each.name)
        return flat(facts)

    @model_validator(mode="before")
    @classmethod
    def _upgrade(cls, values: Any) -> Any:
        """Convert conditions of earlier versions, which have the model's facts in ``metadata``."""
        if not isinstance(values, dict) or "metadata" not in values:
            return values
        facts = values["metadata"]
        answered_by = facts
        if "server" not in facts:
            answered_by = {"device": "cpu", **values, **facts}
            if facts.get("double_quantization") is False:
                answered_by["quantization"] = without_double(facts["quantization"])
        made_with = values.get("made_with") or {}
        versions = {name: value for name, value in made_with.items() if name not in ENCODING}
        encoding = {name: value for name, value in made_with.items() if name in ENCODING}
        source = facts.get("source", "wheel")
        return {**values, "source": source, "answered_by": answered_by, "encoding": encoding, "versions": versions}


def without_double(quantization: str) -> str:
    """``quantization`` with the remark that its scales are not quantised."""
    return f"{quantization}, its scales not quantised"


def differences(one: Conditions, other: Conditions, *changing: Changes) -> list[str]:
    """`key was …, is …` for every fact that differs and determines one of the aspects ``changing``, over common
    tasks."""
    both = one.data.keys() & other.data.keys()
    then, now = (its.of_tasks(both).facts(*changing) for its in (one, other))
    return [*changed_keys(then, now).values()]


@dataclass(frozen=True)
class Leaks:
    """Questions of a task whose choices and right answer are those of a training row."""

    compared_with: str  # description of the training rows
    ids: tuple[str, ...]  # ids of the questions, also of those that were not asked


@dataclass(frozen=True)
class TaskRecord:
    """Facts about a task besides its predictions."""

    # Largest change of a margin between a question alone and in its batch, over a sample of the task, in units of a
    # deciding score; ``None`` for generate, and before it is measured
    drift: float | None = None
    leaks: Leaks | None = None  # ``None`` if the training rows are unknown
    asked: int | None = None  # number of questions that the last evaluation asked; ``None`` before it asks
    # clusters of the questions with an answer (`moslora.tasks.clusters`); ``None`` if none are known
    clusters: Clusters | None = None


@dataclass(frozen=True)
class EvaluationHeader:
    """The content of ``settings.json``, which is written before the first prediction.

    Attributes:
        conditions: the conditions of all predictions.
        tasks: record of each task.
    """

    conditions: Annotated[Conditions, Field(alias="settings")]
    tasks: Mapping[str, TaskRecord]

    def grouped(self, answers: Mapping[str, TaskAnswers]) -> dict[str, TaskAnswers]:
        """Return the answers by task with the clusters of their questions."""
        grouped = {}
        for task, of_task in answers.items():
            clusters = self.tasks[task].clusters if task in self.tasks else None
            # Evaluations of earlier versions have no record of clusters, which the hash of the data gives.
            grouped[task] = of_task.grouped(clusters or known_clusters().get(self.conditions.data.get(task, ""), {}))
        return grouped

    def to_json(self) -> str:
        """Text of ``settings.json``. A task without clusters has no key for them."""
        tasks = {name: asdict(record) for name, record in self.tasks.items()}
        for record in tasks.values():
            if not record["clusters"]:
                del record["clusters"]
        return json.dumps({"settings": asdict(self.conditions), "tasks": tasks}, indent=2, ensure_ascii=False) + "\n"


def read_header(folder: Path) -> EvaluationHeader:
    """Read the header of the evaluation in ``folder``, also one that an earlier version wrote."""
    file = folder / SETTINGS
    try:
        return TypeAdapter(EvaluationHeader).validate_json(file.read_bytes())
    except (OSError, ValidationError):
        hint = "choose another --out or remove the folder"
        raise MosloraError(f"{file}: not an evaluation's settings; {hint}") from None
