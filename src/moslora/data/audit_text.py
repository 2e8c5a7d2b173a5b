"""What `moslora data audit` prints: a table, and a line for each problem found."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moslora.choices import FormatName
from moslora.data.audit import Lengths, TaskAudit, audit
from moslora.data.encode import Encoder
from moslora.data.sources import differences
from moslora.prompts import make_format
from moslora.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HEADER = [
    "\n\ntask",
    "rows\n\ntrain",
    "\n\ntest",
    "tokens of train\n\nmin med p95 max",
    "tokens of test\n\nmin med p95 max",
    "cut %\ntrain/\ntest",
    "repeated\nin train\nq/+c/other",
    "in\ntest\nq",
    "test in\ntrain\nq/+c/leak",
    "else-\nwhere\nq/leak",
    "major-\nity\n%",
]
LEGEND = (
    "q: the same question. +c: with the same choices, in any order. leak: and the same answer. other: another answer.",
    "elsewhere: in another task's training rows. majority: always choosing the most frequent position of the test.",
)


@dataclass(frozen=True)
class Report:
    """What is printed, a table and the lines below it, and the same counts as JSON values."""

    table: list[list[str]]
    lines: list[str]
    counts: dict[str, Any]


def audit_report(
    tasks: Sequence[Task], *, source: str, tokenizer: "PreTrainedTokenizerBase", format: FormatName, max_length: int
) -> Report:
    """The audit of a source for one tokenizer and format; see `audit`."""
    encoder = Encoder(tokenizer, max_length=None)
    audits = audit(tasks, source=source, format=make_format(format, tokenizer), encoder=encoder, max_length=max_length)
    notes = [*differences(source, [task.name for task in tasks]), *_notes(audits, max_length=max_length)]
    counts = {task: dataclasses.asdict(found) for task, found in audits.items()}
    settings = {"source": source, "tokenizer": tokenizer.name_or_path, "format": format, "max_length": max_length}
    return Report(
        table=[HEADER, *([task, *_cells(found)] for task, found in audits.items())],
        lines=["", *LEGEND, *(f"note: {note}" for note in notes)],
        counts={**settings, "tasks": counts, "notes": notes},
    )


def _cells(counted: TaskAudit) -> list[str]:
    train, test, found = counted.train, counted.test, counted.overlap
    return [
        _counts(train, of=train),
        _counts(test, of=test),
        _tokens(counted.train_lengths),
        _tokens(counted.test_lengths),
        f"{_cut(counted.train_lengths, train)}/{_cut(counted.test_lengths, test)}",
        _counts(found.train_questions, found.train_choices, found.conflicts, of=train),
        _counts(found.test_questions, of=test),
        _counts(found.in_train, found.in_train_choices, found.leaks, of=train and test),
        _counts(found.elsewhere, found.elsewhere_leaks, of=test),
        f"{100 * found.majority / test:.1f}" if test else "–",
    ]


def _counts(*counts: int, of: int) -> str:
    return "/".join(f"{count:,}" for count in counts) if of else "–"


def _tokens(lengths: Lengths | None) -> str:
    return f"{lengths.shortest} {lengths.median} {lengths.p95} {lengths.longest:>3}" if lengths else "–"


def _cut(lengths: Lengths | None, rows: int) -> str:
    return f"{100 * lengths.over / rows:.1f}" if lengths else "–"


def _notes(audits: Mapping[str, TaskAudit], *, max_length: int) -> list[str]:
    lines = []
    for split in ("train", "test"):
        missing = [task for task, counted in audits.items() if not getattr(counted, split)]
        if len(missing) == len(audits):
            lines.append(f"no {split} rows here, so overlaps between train and test are not counted")
        elif missing:
            lines.append(f"no {split} rows of {', '.join(missing)}")
    for task, counted in audits.items():
        found = counted.overlap
        for split, lengths in (("training", counted.train_lengths), ("test", counted.test_lengths)):
            if lengths and lengths.over:
                lines.append(f"{task}, {split}: {_too_long(lengths, max_length)}")
        if found.conflicts:
            lines.append(f"{task}: {found.conflicts:,} training questions have more than one answer")
        if leaks := found.leaks + found.elsewhere_leaks:
            lines.append(
                f"{task}: {leaks:,} test questions ({leaks / counted.test:.2%}) are training rows with the same choices"
                " and answer; data.drop_leaks=true leaves those rows out of training"
            )
        if found.free:
            lines.append(
                f"{task}: {found.free:,} rows follow no template, so their options are unknown; their whole texts are"
                " compared"
            )
    return lines


def _too_long(lengths: Lengths, max_length: int) -> str:
    if lengths.no_room:
        return f"{lengths.no_room:,} answers alone are over {max_length} tokens, which training refuses"
    line = f"{lengths.over:,} rows over {max_length} tokens lose the start of their question, never the answer"
    if lengths.end_cut:
        line += f" (a cut at the end would cut {lengths.end_cut:,} answers, {lengths.end_gone:,} of them entirely)"
    return line
