"""How an evaluation was asked, and what is known of each task: the content of ``settings.json``."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from moslora.errors import MosloraError
from moslora.runs.answers import TaskAnswers
from moslora.runs.run import SETTINGS
from moslora.tasks.clusters import Clusters, known_clusters


@dataclass(frozen=True)
class Settings:
    """All that a prediction depends on besides its question: predictions with equal settings may be mixed."""

    protocol: str  # empty if nothing is known, as of another program's log
    format: str
    primary: str  # the metric that counts: accuracy, or accuracy_per_character
    dtype: str  # of the model's computation; empty of a server, of which it is not known
    batch_tokens: int
    block_size: int
    beams: int | None  # of generate; ``None`` otherwise
    max_length: int | None  # longest sequence in tokens; ``None`` if the model states no context length
    data: Mapping[str, str]  # task -> sha256 of all its questions
    metadata: Mapping[str, Any]  # from the caller: what identifies the model
    # of generate, the arguments of transformers' `GenerationConfig`; ``None`` otherwise
    writing: Mapping[str, Any] | None = None
    # versions of packages, hashes of the tokenizer and the chat template
    made_with: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)  # task -> number of its questions in front of the asked

    @property
    def of_server(self) -> bool:
        """Whether a server was asked, of which nobody knows what it computes."""
        return "server" in self.metadata

    @property
    def asked(self) -> dict[str, str]:
        """Field -> value, of protocol and template; empty if they are not known."""
        if not self.protocol:
            return {}
        return {name: str(getattr(self, name)) for name in ("protocol", "format", "beams", "writing", "max_length")}

    @property
    def base_facts(self) -> dict[str, str]:
        """Field -> value, of the base; empty if it is not known."""
        if not self.protocol or self.of_server:
            return {}
        # The last part of a path, as the same folder may be written in several ways.
        name = str(self.metadata.get("base")).rstrip("/").rpartition("/")[2]
        base = f"{name} ({self.metadata.get('fingerprint')})"
        quantization = str(self.metadata.get("quantization"))
        if self.metadata.get("double_quantization") is False:
            quantization += ", its scales not quantised"
        return {"base": base, "dtype": self.dtype, "quantization": quantization}


NOT_KNOWN = Settings("", "", "", "", 0, 0, None, None, {}, {})
"""The settings of another program, whose questions may have hashes instead."""


@dataclass(frozen=True)
class Leaks:
    """Questions of a task whose choices and right answer are also a training row."""

    compared_with: str  # the training rows, in words
    ids: tuple[str, ...]  # of the questions, whether asked or not


@dataclass(frozen=True)
class TaskRecord:
    """Facts about a task besides its predictions."""

    # Largest change of a margin between a question alone and in its batch, over a sample of the task, in units of a
    # deciding score; ``None`` for generate, and before it is measured
    drift: float | None = None
    leaks: Leaks | None = None  # ``None`` if the training rows are unknown
    asked: int | None = None  # number of questions that the last evaluation asked; ``None`` before it asks
    # of the questions with an answer (`moslora.tasks.clusters`); ``None`` if each is alone, as far as is known
    clusters: Clusters | None = None


@dataclass(frozen=True)
class Head:
    """The content of ``settings.json``, which is written before the first prediction."""

    settings: Settings
    tasks: Mapping[str, TaskRecord]

    def grouped(self, answers: Mapping[str, TaskAnswers]) -> dict[str, TaskAnswers]:
        """The answers by task with the clusters of their questions."""
        found = {}
        for task, of_task in answers.items():
            clusters = self.tasks[task].clusters if task in self.tasks else None
            # As they are known of the same data, since evaluations of earlier versions have no record.
            found[task] = of_task.grouped(clusters or known_clusters().get(self.settings.data.get(task, ""), {}))
        return found

    def to_json(self) -> str:
        """The text of ``settings.json``. A task whose questions are each alone has no clusters."""
        content = asdict(self)
        for record in content["tasks"].values():
            if not record["clusters"]:
                del record["clusters"]
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def read_head(folder: Path) -> Head:
    """The head of the evaluation in ``folder``."""
    file = folder / SETTINGS
    try:
        return TypeAdapter(Head).validate_json(file.read_bytes())
    except (OSError, ValidationError):
        hint = "choose another --out or remove the folder"
        raise MosloraError(f"{file}: not an evaluation's settings; {hint}") from None
