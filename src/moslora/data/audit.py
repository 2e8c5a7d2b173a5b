"""Counts of a source's rows: their lengths, repeats, and how much of the test is in the training set; and their table.

`moslora.data.overlap` defines when two rows are the same.
"""

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moslora.choices import FormatName, Split
from moslora.data import local
from moslora.data.encode import Encoder
from moslora.data.overlap import content
from moslora.data.sources import MIXTURE, differences, load_examples, load_training, local_path
from moslora.errors import UsageError
from moslora.prompts import Format, make_format
from moslora.tasks import INSTRUCTION, Example, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Rows = Mapping[str, Sequence[Example]]
"""Task -> its rows."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of training texts: BOS if the tokenizer adds one, prompt, right answer, EOS."""

    shortest: int
    median: int  # the smallest length with half of the rows at or below it
    p95: int  # … with 95 percent of them
    longest: int
    over: int  # rows longer than max_length: they lose the start of their question, never their answer
    end_cut: int  # of these, rows whose answer would lose tokens if the end were cut instead (EOS not counted)
    end_gone: int  # of these, rows whose answer would be gone
    no_room: int  # rows whose answer alone is too long, which training refuses


@dataclass(frozen=True)
class Overlap:
    """Repeated rows of one task; n equal rows are n − 1 repeats."""

    train_questions: int  # training rows that repeat a question
    train_choices: int  # … a question with its choices
    conflicts: int  # questions with their choices that have more than one answer in training
    test_questions: int  # test rows that repeat a question
    in_train: int  # test rows whose question is in the task's training rows
    in_train_choices: int  # … with the same choices
    leaks: int  # … and the same answer
    elsewhere: int  # test rows whose question is in the training rows of another task
    elsewhere_leaks: int  # … with the same choices and answer, and not in the task's own
    majority: int  # test rows whose right choice is at the most frequent position
    free: int  # training rows whose instruction follows no template: compared by their whole text


@dataclass(frozen=True)
class TaskAudit:
    """The counts of one task; no lengths where there are no rows."""

    train: int
    test: int
    train_lengths: Lengths | None
    test_lengths: Lengths | None
    overlap: Overlap


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
    """Counts the rows of ``source`` by task for one tokenizer and format; tasks without rows are left out.

    Bare instructions of a file are a task of their own, the last. A file has no test rows; `MIXTURE` is tested on the
    hub's. Lengths are compared with ``max_length`` in tokens.
    """
    encoder, rendered = Encoder(tokenizer, max_length=None), make_format(format, tokenizer)
    training, test = read(tasks, source=source)
    audits = {}
    for task, overlap in count_overlaps(training, test).items():
        lengths = [count_lengths(rows[task], rendered, encoder, max_length=max_length) for rows in (training, test)]
        audits[task] = TaskAudit(len(training[task]), len(test[task]), lengths[0], lengths[1], overlap)
    notes = [*differences(source, [task.name for task in tasks]), *_notes(audits, max_length=max_length)]
    counts = {task: dataclasses.asdict(found) for task, found in audits.items()}
    settings = {"source": source, "tokenizer": tokenizer.name_or_path, "format": format, "max_length": max_length}
    return Report(
        table=[HEADER, *([task, *_cells(found)] for task, found in audits.items())],
        lines=["", *LEGEND, *(f"note: {note}" for note in notes)],
        counts={**settings, "tasks": counts, "notes": notes},
    )


def read(tasks: Sequence[Task], *, source: str) -> tuple[Rows, Rows]:
    """Training and test rows by task, the same tasks in both; see `audit_report`."""
    one_file = bool((path := local_path(source)) and path.is_file())
    names = (*(task.name for task in tasks), INSTRUCTION)
    if one_file or source == MIXTURE:
        rows = load_training(tasks, source=source)
        training = {name: [row for row in rows if row.task == name] for name in names}
    else:
        training = {task.name: _split(task, "train", source) for task in tasks} | {INSTRUCTION: []}
    test = {task.name: [] if one_file and not task.own else _split(task, "test", source) for task in tasks}
    test |= {INSTRUCTION: []}
    found = [name for name in names if training[name] or test[name]]
    if not found:
        raise UsageError(f"{source}: contains no rows of {', '.join(names[:-1])}")
    return {name: training[name] for name in found}, {name: test[name] for name in found}


def _split(task: Task, split: Split, source: str) -> list[Example]:
    """The rows of a split; none if the folder has no such file."""
    if not task.own and (path := local_path(source)) and local.find_file(path, task, split) is None:
        return []
    return load_examples(task, split, source=source)


def count_overlaps(training: Rows, test: Rows) -> dict[str, Overlap]:
    """Repeats within each task's training and test rows, and between the two."""
    said = {task: [content(row) for row in rows] for task, rows in training.items()}
    where = defaultdict(set)  # question, question with choices, and all of a row -> tasks with it in training
    for task, rows in said.items():
        for row in rows:
            for part in (row.question, row[:2], row):
                where[part].add(task)
    overlaps = {}
    for task, rows in said.items():
        asked = [content(row) for row in test[task]]
        overlaps[task] = Overlap(
            train_questions=len(rows) - len({row.question for row in rows}),
            train_choices=len(rows) - len({row[:2] for row in rows}),
            conflicts=sum(answers > 1 for answers in Counter(row[:2] for row in set(rows)).values()),
            test_questions=len(asked) - len({row.question for row in asked}),
            in_train=sum(task in where[row.question] for row in asked),
            in_train_choices=sum(task in where[row[:2]] for row in asked),
            leaks=sum(task in where[row] for row in asked),
            elsewhere=sum(bool(where[row.question] - {task}) for row in asked),
            elsewhere_leaks=sum(bool(where[row]) and task not in where[row] for row in asked),
            majority=max(Counter(row.gold for row in test[task]).values(), default=0),
            free=sum(not row.choices for row in rows),
        )
    return overlaps


def count_lengths(rows: Sequence[Example], format: Format, encoder: Encoder, *, max_length: int) -> Lengths | None:
    """Token lengths of ``rows`` as training texts; ``None`` without rows. ``encoder`` has no limit of its own."""
    if not rows:
        return None
    options = [format.train(row) for row in rows]
    texts = encoder.encode_all([(option.prompt, option.answer) for option in options], joint=format.joint)
    bos = len(encoder.encode("", "", eos=False).ids)
    lengths = sorted(len(text.ids) for text in texts)
    return Lengths(
        shortest=lengths[0],
        median=lengths[math.ceil(0.5 * len(rows)) - 1],
        p95=lengths[math.ceil(0.95 * len(rows)) - 1],
        longest=lengths[-1],
        over=sum(length > max_length for length in lengths),
        end_cut=sum(length - 1 > max_length for length in lengths),  # the last one is EOS
        end_gone=sum(text.answer_start >= max_length for text in texts),
        no_room=sum(len(text.ids) - text.answer_start + bos > max_length for text in texts),
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
