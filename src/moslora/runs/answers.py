"""The answers to the questions of one task, as one table: its columns are the fields of `Prediction`, a row."""

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
    """Answers to the questions of one task, column by column. A column that is not known, or that this kind of task
    does not have, is empty; all others have a value for each id.

    Attributes:
        ids: of the questions, or of the texts.
        gold: position of the right option; empty for texts and open-ended questions, and if a log does not tell.
        outcomes: the numbers that can be compared (`moslora.runs.outcomes`), or those that a log has.
        hashes: of the question, of the answer and of the prompt, if a log has them.
        truncated: whether the question, or the text, was longer than the limit.
        scores: log-probability of each option in nats.
        characters: of each option, by which ``cloze`` divides its score.
        prediction: position of the option with the best score, or that a generated text names, if it names one; of an
            open-ended question the position of the accepted answer that was given, if one was.
        text: that was generated.
        answer: the label found in each generated text, or what was read from it as an answer in words, or "".
        bytes: of a text that is measured: the bytes in UTF-8 that its score is of.
        clusters: name of the cluster that each question is in; empty if each is alone, as far as is known.
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
        """The columns of the predictions of one task, at least one, in their order."""
        first = predictions[0]
        known = ["prediction", "truncated", *(["scores"] if first.scores else ["text", "answer"])]
        known += [name for name in ("characters", "bytes") if getattr(first, name)]
        if first.gold not in (None, UNKNOWN) and not first.bytes:
            known.append("gold")
        columns: dict[str, Any] = {name: tuple(getattr(each, name) for each in predictions) for name in known}
        return cls(tuple(each.id for each in predictions), **columns)

    @property
    def are_texts(self) -> bool:
        """Whether these are measures of texts, and no answers to questions."""
        return bool(self.bytes)

    @property
    def are_in_words(self) -> bool:
        """Whether these are answers to open-ended questions."""
        return bool(self.text) and not self.gold

    @cached_property
    def deciding_scores(self) -> tuple[tuple[float, ...], ...]:
        """The scores that decide: per character if there are ``characters``."""
        return tuple(map(deciding, self.scores, self.characters or repeat(())))

    @cached_property
    def chosen(self) -> tuple[int | None, ...]:
        """The position that counts, by the primary metric; ``None`` for a generated text without an answer."""
        if not self.scores:
            return self.prediction
        return tuple(argmax(scores) for scores in self.deciding_scores)

    def grouped(self, clusters: Mapping[str, str]) -> "TaskAnswers":
        """The answers with the clusters of their questions."""
        names = self.in_clusters(clusters)
        return replace(self, clusters=names if len(set(names)) < len(names) else ())

    @property
    def cluster_count(self) -> int:
        """Number of clusters that the questions are in; of questions that are each alone their number."""
        return len(set(self.clusters or self.ids))

    def in_clusters(self, clusters: Mapping[str, str]) -> tuple[str, ...]:
        """The name of the cluster of each question (`moslora.tasks.clusters`)."""
        return tuple(clusters.get(id, id) for id in self.ids)

    def only(self, ids: Collection[str]) -> "TaskAnswers":
        """The answers to these questions, in the order in which they are here."""
        wanted = set(ids)
        return self.at([place for place, id in enumerate(self.ids) if id in wanted])

    def at(self, places: Sequence[int]) -> "TaskAnswers":
        """The answers at these positions, in this order."""

        def those(column: Any) -> Any:
            if isinstance(column, Mapping):
                return {name: those(each) for name, each in column.items()}
            return tuple(column[place] for place in places if column)

        return TaskAnswers(**{each.name: those(getattr(self, each.name)) for each in fields(self)})


def order_key(id: str) -> bytes:
    """Sort key of a question: the hash of its id, so that the first questions are always a random sample."""
    return hashlib.sha256(id.encode()).digest()


def by_task(predictions: Sequence[Prediction]) -> dict[str, TaskAnswers]:
    """The columns of these predictions, in the order in which the tasks were asked, without those that were refused."""
    rows: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        if prediction.refused:
            continue
        rows.setdefault(prediction.task, []).append(prediction)
    return {task: TaskAnswers.of(of_task) for task, of_task in rows.items()}
