"""What `moslora data audit` prints: one table, and a line in words for each thing that is off."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moslora.choices import FormatName
from moslora.data.audit import Lengths, Overlap, TaskAudit, audit
from moslora.data.encode import Encoder
from moslora.data.sources import differences
from moslora.prompts import FORMATS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEGEND = (
    "q: the same question. +c: with the same choices, in any order. leak: and the same answer. other: another answer.",
    "elsewhere: in another task's training rows. majority: always choosing the most frequent position of the test.",
)


@dataclass(frozen=True)
class Report:
    """What is printed, a table and lines below it, and the same counts as JSON values."""

    table: list[list[str]]
    lines: list[str]
    counts: dict[str, Any]


def audit_report(
    tasks: Sequence[str], *, source: str, tokenizer: "PreTrainedTokenizerBase", format: FormatName, max_length: int
) -> Report:
    """The audit of a source for one tokenizer and format; see `audit`."""
    encoder = Encoder(tokenizer, max_length=None)
    audits = audit(tasks, source=source, format=FORMATS[format], encoder=encoder, max_length=max_length)
    notes = [*differences(source, tasks), *_notes(audits, max_length=max_length)]
    counts = {task: dataclasses.asdict(found) for task, found in audits.items()}
    settings = {"source": source, "tokenizer": tokenizer.name_or_path, "format": format, "max_length": max_length}
    return Report(
        table=[
            ["\n\ntask", *_COLUMNS],
            *([task, *(str(cell(a, a.overlap) or "–") for cell in _COLUMNS.values())] for task, a in audits.items()),
        ],
        lines=["", *LEGEND, *(f"note: {note}" for note in notes)],
        counts={**settings, "tasks": counts, "notes": notes},
    )


def _tokens(lengths: Lengths | None) -> str:
    return f"{lengths.shortest} {lengths.median} {lengths.p95} {lengths.longest:>3}" if lengths else ""


def _cut(lengths: Lengths | None, rows: int) -> str:
    return f"{100 * lengths.over / rows:.1f}" if lengths else "–"


# Header -> a cell of counts, in the header's order; empty, or 0, where there are no such rows.
_COLUMNS: Mapping[str, Callable[[TaskAudit, Overlap], str | int]] = {
    "rows\n\ntrain": lambda a, o: a.train and f"{a.train:,}",
    "\n\ntest": lambda a, o: a.test and f"{a.test:,}",
    "tokens of train\n\nmin med p95 max": lambda a, o: _tokens(a.train_lengths),
    "tokens of test\n\nmin med p95 max": lambda a, o: _tokens(a.test_lengths),
    "cut %\ntrain/\ntest": lambda a, o: f"{_cut(a.train_lengths, a.train)}/{_cut(a.test_lengths, a.test)}",
    "repeated\nin train\nq/+c/other": lambda a, o: (
        a.train and f"{o.train_questions:,}/{o.train_choices:,}/{o.conflicts:,}"
    ),
    "in\ntest\nq": lambda a, o: a.test and f"{o.test_questions:,}",
    "test in\ntrain\nq/+c/leak": lambda a, o: (
        a.train and a.test and f"{o.in_train:,}/{o.in_train_choices:,}/{o.leaks:,}"
    ),
    "else-\nwhere\nq/leak": lambda a, o: a.test and f"{o.elsewhere:,}/{o.elsewhere_leaks:,}",
    "major-\nity\n%": lambda a, o: a.test and f"{100 * o.majority / a.test:.1f}",
}


def _notes(audits: Mapping[str, TaskAudit], *, max_length: int) -> list[str]:
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
            if lengths and lengths.over:
                lines.append(f"{task}, {split}: {_too_long(lengths, max_length)}")
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


def _too_long(lengths: Lengths, max_length: int) -> str:
    if lengths.no_room:
        return f"answers over {max_length} tokens by themselves, which training refuses: {lengths.no_room:,}"
    line = f"rows over {max_length} tokens: {lengths.over:,}; the start of their question is cut, no answer"
    if lengths.end_cut:
        line += f" (cutting the end would take from {lengths.end_cut:,} answers, and all of {lengths.end_gone:,})"
    return line
