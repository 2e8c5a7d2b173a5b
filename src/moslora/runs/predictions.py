"""A model's answer to one question: what a protocol makes, and a line of ``predictions.jsonl``."""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moslora.errors import MosloraError
from moslora.tasks import Example


@dataclass(frozen=True)
class Prediction:
    """A model's answer to one question, or its measure of a text."""

    id: str
    task: str
    gold: int | None  # position of the right option; ``None`` of an open-ended question, which has none
    # position of the option with the best score, the first of equals; generate: of the option named in the text; of an
    # open-ended question that of the accepted answer in the text; ``None`` if it has none
    prediction: int | None
    # log-probability of each option in nats: among the options (choice), or of its tokens, summed (cloze, texts)
    scores: tuple[float, ...] = ()
    characters: tuple[int, ...] = ()  # of each option, by which cloze divides the scores
    text: str | None = None  # that was written
    answer: str | None = None  # the label found in generate's text, or what was read as an answer in words, or ""
    truncated: bool = False  # the prompt lost its beginning because it was too long, or a text its end
    bytes: int = 0  # of a text, its only option: those in UTF-8 that the score is of
    refused: str = ""  # why a server has not answered; such a question counts in no average

    @classmethod
    def of(
        cls, example: Example, scores: Sequence[float], *, characters: tuple[int, ...] = (), truncated: bool
    ) -> "Prediction":
        """The option with the best score. Scores are rounded to 1e-6 nats here rather than on the way to the disk, so
        that a resumed evaluation equals an uninterrupted one."""
        if not all(math.isfinite(score) for score in scores):
            raise MosloraError(f"{example.id}: scores are not finite, {scores}; use --dtype bfloat16 or float32")
        rounded = tuple(round(score, 6) for score in scores)
        return cls(example.id, example.task, example.gold, argmax(rounded), rounded, characters, truncated=truncated)

    @property
    def deciding_scores(self) -> tuple[float, ...]:
        """The scores behind the primary metric: per character if there are ``characters``."""
        return deciding(self.scores, self.characters)

    def to_json(self) -> str:
        """One line, without fields that have their default or that others give."""
        known = {field.name: field.default for field in dataclasses.fields(self)}
        known |= _given(self.id, self.scores)
        fields = {name: value for name, value in vars(self).items() if value != known[name]}
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> "Prediction":
        """The inverse of `to_json`, with floats equal bit for bit."""
        values = json.loads(line)
        for name in ("scores", "characters"):
            values[name] = tuple(values.get(name, ()))
        return cls(**_given(values["id"], values["scores"]) | values)


def _given(id: str, scores: Sequence[float]) -> dict[str, Any]:
    """The fields of a `Prediction` that its id, which begins with the task, and its scores give."""
    given: dict[str, Any] = {"task": id.partition("/")[0]}
    if scores:
        given["prediction"] = argmax(scores)
    return given


def argmax(values: Sequence[float]) -> int:
    """Position of the largest value, the first of equals, as in ``numpy.argmax`` and so in lm-eval."""
    return max(range(len(values)), key=values.__getitem__)


def deciding(scores: tuple[float, ...], characters: tuple[int, ...]) -> tuple[float, ...]:
    """The scores that decide which option is chosen: per character if there are ``characters``."""
    if not characters:
        return scores
    return tuple(score / count for score, count in zip(scores, characters, strict=True))


def margin(scores: Sequence[float]) -> float:
    """The best score minus the second best."""
    best, second = sorted(scores, reverse=True)[:2]
    return best - second
