"""A model's answer to one question: the result of a protocol, and a line of ``predictions.jsonl``."""

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
    gold: int | None  # position of the right option; ``None`` for an open-ended question
    # position of the option with the best score (the first of equal ones), of the option that the generated text names,
    # or of the accepted answer that it gives; ``None`` without one
    prediction: int | None
    # log-probability of each option in nats: among the options (choice), or summed over its tokens (cloze, texts)
    scores: tuple[float, ...] = ()
    characters: tuple[int, ...] = ()  # number of characters of each option, by which cloze divides the scores
    text: str | None = None  # generated text
    answer: str | None = None  # label, or answer in words, that was read from the generated text; "" without one
    truncated: bool = False  # whether a long prompt lost its beginning, or a long text its end
    bytes: int = 0  # number of UTF-8 bytes that the score of a measured text covers
    refused: str = ""  # reason why a server did not answer; such a question counts in no average

    @classmethod
    def of(
        cls, example: Example, scores: Sequence[float], *, characters: tuple[int, ...] = (), truncated: bool
    ) -> "Prediction":
        """Prediction of the option with the best score.

        Scores are rounded to 1e-6 nats before they decide, so that a resumed evaluation equals an uninterrupted one.
        """
        if not all(math.isfinite(score) for score in scores):
            raise MosloraError(f"{example.id}: scores are not finite, {scores}; use --dtype bfloat16 or float32")
        rounded = tuple(round(score, 6) for score in scores)
        return cls(example.id, example.task, example.gold, argmax(rounded), rounded, characters, truncated=truncated)

    @property
    def deciding_scores(self) -> tuple[float, ...]:
        """Scores that decide which option is chosen: per character if there are ``characters``."""
        return deciding(self.scores, self.characters)

    def to_json(self) -> str:
        """Line of JSON, without fields that have their default or that follow from others."""
        omitted = {field.name: field.default for field in dataclasses.fields(self)}
        omitted |= _given(self.id, self.scores)
        fields = {name: value for name, value in vars(self).items() if value != omitted[name]}
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> "Prediction":
        """Prediction in a line of `to_json`, with floats equal bit for bit."""
        values = json.loads(line)
        for name in ("scores", "characters"):
            values[name] = tuple(values.get(name, ()))
        return cls(**_given(values["id"], values["scores"]) | values)


def _given(id: str, scores: Sequence[float]) -> dict[str, Any]:
    """Fields of a `Prediction` that follow from its id, which begins with the task, and from its scores."""
    given: dict[str, Any] = {"task": id.partition("/")[0]}
    if scores:
        given["prediction"] = argmax(scores)
    return given


def argmax(values: Sequence[float]) -> int:
    """Position of the largest value, the first of equals, as in ``numpy.argmax`` and so in lm-eval."""
    return max(range(len(values)), key=values.__getitem__)


def deciding(scores: tuple[float, ...], characters: tuple[int, ...]) -> tuple[float, ...]:
    """Scores that decide which option is chosen: divided by ``characters`` if there are any."""
    if not characters:
        return scores
    return tuple(score / count for score, count in zip(scores, characters, strict=True))


def margin(scores: Sequence[float]) -> float:
    """Best score minus second best score."""
    best, second = sorted(scores, reverse=True)[:2]
    return best - second
