"""Logs of Inspect (``inspect_ai``): a row for each sample that has a score, with the names that lm-eval's rows have."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from itertools import takewhile
from math import isfinite
from pathlib import Path
from typing import Any

from moslora.console import note
from moslora.errors import UsageError, counted, first_line, needing

SUFFIXES = (".eval", ".json")

DATED = re.compile(r"\d{4}-\d\d-\d\dT.+\.(eval|json)")
"""A name that Inspect gave, after the time, the task and an id. Other names are the user's."""

EPOCH = ", epoch "
"""In the id of a sample that was asked again."""

GRADES = {"C": 1, "P": 0.5, "I": 0, "N": 0}
"""Correct, partially correct, incorrect and no answer, as Inspect counts them."""


def model_of(file: Path) -> str:
    """The name of the model that was asked."""
    return _read(file, header_only=True).eval.model


def read_rows(file: Path) -> Iterator[dict[str, Any]]:
    """A row for each sample and epoch. Its metrics are its scores: of a single one ``score``, of several their scorers'
    names, with the key of a score that is a table. Says how many samples have no score."""
    log = _read(file)
    samples = log.samples or []
    scores = [_numbers(sample.scores or {}) for sample in samples]
    is_single = len(set().union(*scores)) == 1
    missing = len(log.eval.dataset.sample_ids or ()) * (log.eval.config.epochs or 1)
    for sample, numbers in zip(samples, scores, strict=True):
        if not numbers:
            continue
        missing -= 1
        if is_single:
            (value,) = numbers.values()
            numbers = {"score": value}
        question = (_said(sample.input), sample.choices)
        asked = takewhile(lambda message: message.role != "assistant", sample.messages)
        yield numbers | {
            "doc_id": f"{sample.id}{EPOCH}{sample.epoch}".removesuffix(f"{EPOCH}1"),
            "task": log.eval.task,
            "metrics": [*numbers],
            "filtered_resps": [],
            "arguments": question,
            "doc_hash": _hash(question),
            "target_hash": _hash(sample.target),
            "prompt_hash": _hash(_said([*asked])),
            "metadata": sample.metadata,
        }
    if missing > 0:
        note(f"{file}: {counted(missing, 'sample')} without a score left out; status: {log.status}")


def _read(file: Path, *, header_only: bool = False) -> Any:
    with needing("inspect_ai", str(file)):
        from inspect_ai.log import read_eval_log
    try:
        return read_eval_log(file, header_only, exclude_fields={"attachments", "events", "store"})
    except Exception as error:  # of whatever kind
        fault = first_line(error)
        raise UsageError(
            f"{file}: not a log of Inspect ({fault}); a table must be .csv or .jsonl, a log of lm-eval"
            " samples_TASK_DATE.jsonl (by --log_samples)"
        ) from None


def _numbers(scores: Mapping[str, Any]) -> dict[str, float]:
    """Each score that is a number, by its scorer and, in a table, by its key."""
    numbers = {}
    for scorer, score in scores.items():
        values = {scorer: score.value}
        if isinstance(score.value, dict):
            values = {f"{scorer}.{key}": value for key, value in score.value.items()}
        for name, value in values.items():
            if isinstance(value, str):
                value = GRADES.get(value)
            if isinstance(value, int | float) and isfinite(value):
                numbers[name] = float(value)
    return numbers


def _hash(value: Any) -> str:
    return hashlib.sha256(ascii(value).encode()).hexdigest()


def _said(messages: Any) -> str:
    """A text, or who says what in messages: their ids are new in each evaluation."""
    if isinstance(messages, str):
        return messages
    return str([(message.role, message.content) for message in messages])
