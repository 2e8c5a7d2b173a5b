"""Logs of Inspect (``inspect_ai``) as rows with the keys of lm-eval's, one for each sample that has a score.

`moslora.compare.logs` makes answers of the rows.
"""

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
"""File name that Inspect gave, of time, task and id. Other names are the user's."""

EPOCH = ", epoch "
"""Separator between a sample's id and its epoch."""

GRADES = {"C": 1, "P": 0.5, "I": 0, "N": 0}
"""Grade -> score, as in Inspect: correct, partially correct, incorrect, no answer."""


def model_of(file: Path) -> str:
    """Return the name of the evaluated model."""
    return _read(file, header_only=True).eval.model


def read_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Yield a row for each scored sample and epoch. Print how many samples have no score.

    A single score is the metric ``score``. Several are named by their scorers, and those in a table also by their keys.
    """
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
        question = (_text_of(sample.input), sample.choices)
        prompt = takewhile(lambda message: message.role != "assistant", sample.messages)
        yield numbers | {
            "doc_id": f"{sample.id}{EPOCH}{sample.epoch}".removesuffix(f"{EPOCH}1"),
            "task": log.eval.task,
            "metrics": [*numbers],
            "filtered_resps": [],
            "arguments": question,
            "doc_hash": _hash(question),
            "target_hash": _hash(sample.target),
            "prompt_hash": _hash(_text_of([*prompt])),
            "metadata": sample.metadata,
        }
    if missing > 0:
        note(f"{file}: left out {counted(missing, 'sample')} without a score; the log's status: {log.status}")


def _read(file: Path, *, header_only: bool = False) -> Any:
    """Return a log, without its larger parts.

    Raises:
        UsageError: the file is not a log of Inspect, or Inspect is not installed.
    """
    with needing("inspect_ai", str(file)):
        from inspect_ai.log import read_eval_log
    try:
        return read_eval_log(file, header_only, exclude_fields={"attachments", "events", "store"})
    except Exception as error:  # Inspect documents no types
        fault = first_line(error)
        raise UsageError(
            f"{file}: not a log of Inspect ({fault}); a table must be .csv or .jsonl, a log of lm-eval"
            " samples_TASK_DATE.jsonl (by --log_samples)"
        ) from None


def _numbers(scores: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores that are numbers, by scorer, and by key for a score that is a table."""
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


def _text_of(messages: Any) -> str:
    """Return a text, or the roles and contents of messages, without their ids, which are new in each evaluation."""
    if isinstance(messages, str):
        return messages
    return str([(message.role, message.content) for message in messages])
