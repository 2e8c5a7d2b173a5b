"""The answers to the questions of one task as columns. A `Prediction` is a row."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import repeat
from typing import Any

from moslora.runs.predictions import Prediction, argmax, deciding
from moslora.tasks import UNKNOWN


@dataclass(frozen=True)
class TaskAnswers:
    """Answers to the questions of one task, column by column.

    A column is empty if it is unknown, or if this kind of task has none. Every other column has a value for each id.

    Attributes:
        ids: of the questions, or of the texts.
        gold: position of the right option; empty for texts and open-ended questions, and if a log has none.
        outcomes: numbers that can be compared (`moslora.runs.outcomes`), or the numbers of a log.
        hashes: of the question, of the answer and of the prompt, if a log has them.
        truncated: whether the question, or the text, was longer than the limit.
        scores: log-probability of each option in nats.
        characters: of each option, by which ``cloze`` divides its score.
        prediction: position of the option with the best score or of the option that a generated text names; for an
            open-ended question, position of the accepted answer that was given; ``None`` without one.
        text: generated text.
        answer: label, or answer in words, that was read from the generated text; "" without one.
        bytes: number of UTF-8 bytes that the score of a measured text covers.
        clusters: cluster of each question; empty if no two questions are known to share one.
    """

    ids: tuple[str, ...]
    gold: tuple[int, ...] = ()
    outcomes: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    hashes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    truncated: tuple[bool, ...] = ()
    scores: tuple[tuple[float, ...], ...] = ()
    characters: tuple[tuple[int, ...], ...] = ()
    prediction: tuple[int | None, ...] = ()
    text: tuple[str | None, ...] = ()
    answer: tuple[str | None, ...] = ()
    bytes: tuple[int, ...] = ()
    clusters: tuple[str, ...] = ()

    @classmethod
    def of(cls, predictions: Sequence[Prediction]) -> "TaskAnswers":
        """Columns of the predictions of one task (at least one), in their order."""
        first = predictions[0]
        names = ["prediction", "truncated", *(["scores"] if first.scores else ["text", "answer"])]
        names += [name for name in ("characters", "bytes") if getattr(first, name)]
        if first.gold not in (None, UNKNOWN) and not first.bytes:
            names.append("gold")
        columns: dict[str, Any] = {name: tuple(getattr(each, name) for each in predictions) for name in names}
        return cls(tuple(each.id for each in predictions), **columns)

    @property
    def are_texts(self) -> bool:
        """Whether texts were measured instead of questions asked."""
        return bool(self.bytes)

    @property
    def are_in_words(self) -> bool:
        """Whether the questions are open-ended."""
        return bool(self.text) and not self.gold

    @cached_property
    def deciding_scores(self) -> tuple[tuple[float, ...], ...]:
        """Scores that decide which option is chosen: per character if there are ``characters``."""
        return tuple(map(deciding, self.scores, self.characters or repeat(())))

    @cached_property
    def chosen(self) -> tuple[int | None, ...]:
        """Position of the chosen option by the primary metric; ``None`` for a generated text without an answer."""
        if not self.scores:
            return self.prediction
        return tuple(argmax(scores) for scores in self.deciding_scores)

    def grouped(self, clusters: Mapping[str, str]) -> "TaskAnswers":
        """Return the answers with the clusters of their questions."""
        names = self.in_clusters(clusters)
        return replace(self, clusters=names if len(set(names)) < len(names) else ())

    @property
    def cluster_count(self) -> int:
        """Number of clusters, where a question without one is its own."""
        return len(set(self.clusters or self.ids))

    def in_clusters(self, clusters: Mapping[str, str]) -> tuple[str, ...]:
        """Cluster of each question (`moslora.tasks.clusters`); its own id for a question without one."""
        return tuple(clusters.get(id, id) for id in self.ids)

    def only(self, ids: Collection[str]) -> "TaskAnswers":
        """Return only the answers to the questions with these ids, without reordering the answers."""
        wanted = set(ids)
        return self.at([place for place, id in enumerate(self.ids) if id in wanted])

    def at(self, places: Sequence[int]) -> "TaskAnswers":
        """Return the answers at these positions, in this order."""

        def select(column: Any) -> Any:
            if isinstance(column, Mapping):
                return {name: select(each) for name, each in column.items()}
            return tuple(column[place] for place in places if column)

        return TaskAnswers(**{each.name: select(getattr(self, each.name)) for each in fields(self)})


def order_key(id: str) -> bytes:
    """Sort key of a question: the hash of its id, so that the first questions are always a random sample."""
    return hashlib.sha256(id.encode()).digest()


def by_task(predictions: Sequence[Prediction]) -> dict[str, TaskAnswers]:
    """Columns of the predictions by task, without questions that a server refused. Tasks are in the order of their
    first predictions."""
    rows: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        if prediction.refused:
            continue
        rows.setdefault(prediction.task, []).append(prediction)
    return {task: TaskAnswers.of(of_task) for task, of_task in rows.items()}
