"""What `moslora data audit` prints: one table, and a line in words for each thing that is off."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moslora.data import audit
from moslora.data.audit import Lengths, TaskAudit
from moslora.data.encode import Encoder
from moslora.data.sources import differences
from moslora.errors import UsageError
from moslora.prompts import FORMATS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NONE = "–"

LEGEND = (
    "q: the same question. +c: with the same choices, in any order. leak: and the same answer. other: another answer.",
    "elsewhere: in another task's training rows. majority: always choosing the most frequent position of the test.",
)


COUNTS = {"source", "tokenizer", "format", "max_length", "tasks", "notes"}
"""Keys of what is written."""


@dataclass(frozen=True)
class Report:
    """What is printed, a table and lines below it, and the same counts as JSON values."""

    table: list[list[str]]
    lines: list[str]
    counts: dict[str, Any]


def refuse_other_file(path: Path) -> None:
    """Refuses to write the counts over a file that holds anything but those of an earlier audit.

    Raises:
        UsageError: it does, or no file can be there.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"--json {path}: give a file in a folder that exists")
    if not path.exists():
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if not (isinstance(found, dict) and found.keys() == COUNTS):
        raise UsageError(f"--json {path}: there already, and no earlier audit; give another file, or remove it")


def audit_report(
    tasks: Sequence[str], *, source: str, tokenizer: "PreTrainedTokenizerBase", format: str, max_length: int
) -> Report:
    """The audit of a source for one tokenizer and format.

    Raises:
        UsageError: an unknown format, or what `moslora.data.audit.audit` raises.
    """
    if format not in FORMATS:
        raise UsageError(f"--format {format}: none of {', '.join(FORMATS)}")
    encoder = Encoder(tokenizer, max_length=None)
    audits = audit.audit(tasks, source=source, format=FORMATS[format], encoder=encoder, max_length=max_length)
    remarks = [*differences(source, tasks), *notes(audits, max_length=max_length)]
    counts = {task: dataclasses.asdict(found) for task, found in audits.items()}
    settings = {"source": source, "tokenizer": tokenizer.name_or_path, "format": format, "max_length": max_length}
    return Report(
        table=table(audits),
        lines=["", *LEGEND, *(f"note: {remark}" for remark in remarks)],
        counts={**settings, "tasks": counts, "notes": remarks},
    )


def table(audits: Mapping[str, TaskAudit]) -> list[list[str]]:
    """Header, then a row for each task. Counts that belong together share a cell; the header names them in order."""
    columns: list[tuple[str, Callable[[TaskAudit], str]]] = [
        ("rows\n\ntrain", lambda a: _count(a.train)),
        ("\n\ntest", lambda a: _count(a.test)),
        ("tokens of train\n\nmin med p95 max", lambda a: _lengths(a.train_lengths)),
        ("tokens of test\n\nmin med p95 max", lambda a: _lengths(a.test_lengths)),
        ("cut %\ntrain/\ntest", lambda a: f"{_share(a.train_lengths, a.train)}/{_share(a.test_lengths, a.test)}"),
        (
            "repeated\nin train\nq/+c/other",
            lambda a: _cell(a.train, a.overlap.train_questions, a.overlap.train_choices, a.overlap.conflicts),
        ),
        ("in\ntest\nq", lambda a: _cell(a.test, a.overlap.test_questions)),
        (
            "test in\ntrain\nq/+c/leak",
            lambda a: _cell(a.test and a.train, a.overlap.in_train, a.overlap.in_train_choices, a.overlap.leaks),
        ),
        ("else-\nwhere\nq/leak", lambda a: _cell(a.test, a.overlap.elsewhere, a.overlap.elsewhere_leaks)),
        ("major-\nity\n%", lambda a: f"{100 * a.overlap.majority / a.test:.1f}" if a.test else _NONE),
    ]
    header = ["\n\ntask", *(title for title, _ in columns)]
    return [header, *([task, *(cell(audit) for _, cell in columns)] for task, audit in audits.items())]


def notes(audits: Mapping[str, TaskAudit], *, max_length: int) -> list[str]:
    """A line for each thing that is off."""
    lines = []
    for split in ("train", "test"):
        missing = [task for task, audit in audits.items() if not getattr(audit, split)]
        if len(missing) == len(audits):
            lines.append(f"no {split} rows here: nothing to say of them, nor of what train and test share")
        elif missing:
            lines.append(f"no {split} rows of {', '.join(missing)}")
    for task, found in audits.items():
        overlap = found.overlap
        for split, lengths in (("training", found.train_lengths), ("test", found.test_lengths)):
            lines += _length_notes(f"{task}, {split}", lengths, max_length)
        if overlap.conflicts:
            lines.append(f"{task}: training questions that come with more than one answer: {overlap.conflicts:,}")
        if leaks := overlap.leaks + overlap.elsewhere_leaks:
            lines.append(
                f"{task}: test questions that are in training with choices and answer: {leaks:,}"
                f" ({leaks / found.test:.2%}); data.drop_leaks=true leaves those rows out of training"
            )
        if overlap.free:
            lines.append(
                f"{task}: rows that follow no template, so that their options are unknown: {overlap.free:,}; they are"
                " compared by their text alone"
            )
    return lines


def _length_notes(name: str, lengths: Lengths | None, max_length: int) -> list[str]:
    if lengths is None or not lengths.over:
        return []
    if lengths.no_room:
        return [f"{name}: answers over {max_length} tokens by themselves, which training refuses: {lengths.no_room:,}"]
    line = f"{name}: rows over {max_length} tokens: {lengths.over:,}; the start of their question is cut, no answer"
    if lengths.end_cut:
        line += f" (cutting the end would take from {lengths.end_cut:,} answers, and all of {lengths.end_gone:,})"
    return [line]


def _count(rows: int) -> str:
    return f"{rows:,}" if rows else _NONE


def _cell(rows: int, *counts: int) -> str:
    return "/".join(f"{count:,}" for count in counts) if rows else _NONE


def _lengths(lengths: Lengths | None) -> str:
    if lengths is None:
        return _NONE
    return f"{lengths.shortest} {lengths.median} {lengths.p95} {lengths.longest:>3}"


def _share(lengths: Lengths | None, rows: int) -> str:
    return f"{100 * lengths.over / rows:.1f}" if lengths else _NONE
