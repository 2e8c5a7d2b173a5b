"""Counts of a source's rows by task: their lengths, repeats, and how much of the test is in the training set.

`moslora.data.overlap` defines when two rows are the same.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low

from transformers import PreTrainedTokenizerBase

from moslora.choices import FormatName, Split
from moslora.data import local
from moslora.data.encode import Encoder
from moslora.data.overlap import content
from moslora.data.sources import differences, load_examples, load_training, local_path
from moslora.errors import UsageError
from moslora.prompts import Format, make_format
from moslora.tasks import INSTRUCTION, Example, Task

Rows = Mapping[str, Sequence[Example]]
"""Task -> its rows."""

HEADER = ["task", "train", "test", "median", "longest", "cut", "repeats", "conflicts", "test in train", "leaks"]
LEGEND = """
median, longest: tokens of a training row. cut: training rows over the limit, which lose the start of their question.
repeats: training rows whose question and choices came before. conflicts: questions and choices with several answers.
test in train: test rows whose question is a training row's. leaks: those with the same choices and answer."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of training texts: BOS if the tokenizer adds one, prompt, right answer, EOS."""

    median: int  # the smallest length with half of the rows at or below it
    longest: int
    over: int  # rows longer than max_length: they lose the start of their question, never their answer
    end_cut: int  # of these, rows whose answer would lose tokens if the end were cut instead (EOS not counted)
    no_room: int  # rows whose answer alone is too long, which training refuses


@dataclass(frozen=True)
class Overlap:
    """Repeated rows of one task; n equal rows are n − 1 repeats."""

    repeats: int  # training rows that repeat a question with its choices
    conflicts: int  # questions with their choices that have more than one answer in training
    in_train: int  # test rows whose question is in a training row, of whatever task
    leaks: int  # … with the same choices and answer
    free: int  # training rows whose instruction follows no template: compared by their whole text


def audit_rows(
    tasks: Sequence[Task], *, source: str, tokenizer: PreTrainedTokenizerBase, format: FormatName, max_length: int
) -> tuple[list[list[str]], list[str]]:
    """The counts of ``source`` as a table, and the notes below it; tasks without rows are left out.

    Bare instructions of a file are a task of their own, the last. A file has no test rows; `MIXTURE` is tested on the
    hub's. Lengths are compared with ``max_length`` in tokens.
    """
    encoder, rendered = Encoder(tokenizer, max_length=None), make_format(format, tokenizer)
    training, test = read(tasks, source=source)
    table, notes = [HEADER], differences(source, [task.name for task in tasks])
    for split, rows in (("training", training), ("test", test)):
        if missing := [task for task in rows if not rows[task]]:
            notes.append(f"no {split} rows of {', '.join(missing)}")
    overlaps = count_overlaps(training, test)
    for task, found in overlaps.items():
        trained, tested = len(training[task]), len(test[task])
        lengths = count_lengths(training[task], rendered, encoder, max_length=max_length) if trained else None
        measured = (lengths.median, lengths.longest, f"{lengths.over / trained:.1%}") if lengths else ("–", "–", "–")
        cells = (trained, tested, *measured, found.repeats, found.conflicts, found.in_train, found.leaks)
        table.append([task, *(f"{cell:,}" if isinstance(cell, int) else cell for cell in cells)])
        if lengths and lengths.no_room:
            notes.append(f"{task}: {lengths.no_room:,} answers exceed {max_length} tokens, which training refuses")
        elif lengths and lengths.end_cut:
            notes.append(
                f"{task}: {lengths.over:,} rows over {max_length} tokens lose the start of their question; a cut at the"
                f" end would cut {lengths.end_cut:,} answers"
            )
        if found.free:
            notes.append(f"{task}: {found.free:,} rows follow no template and are compared by their whole texts")
    if leaks := sum(found.leaks for found in overlaps.values()):
        notes.append(f"{leaks:,} test questions are training rows; data.drop_leaks=true leaves these out of training")
    return table, notes


def read(tasks: Sequence[Task], *, source: str) -> tuple[Rows, Rows]:
    """Training and test rows by task, the same tasks in both; see `audit_rows`."""
    path = local_path(source)
    trained = load_training([task for task in tasks if _has(path, task, "train")], source=source)
    tested = [row for task in tasks if _has(path, task, "test") for row in load_examples(task, "test", source=source)]
    found = {row.task for row in (*trained, *tested)}
    names = [name for name in (*(task.name for task in tasks), INSTRUCTION) if name in found]
    if not names:
        raise UsageError(f"{source}: contains no rows of {', '.join(task.name for task in tasks)}")
    training, test = ({name: [row for row in rows if row.task == name] for name in names} for rows in (trained, tested))
    return training, test


def _has(path: Path | None, task: Task, split: Split) -> bool:
    """Whether a split can be loaded: a folder may lack files, and a file has training rows alone."""
    if task.own or path is None:
        return True
    return split == "train" if path.is_file() else local.find_file(path, task, split) is not None


def count_overlaps(training: Rows, test: Rows) -> dict[str, Overlap]:
    """Repeats within each task's training rows, and of its test rows in all training rows."""
    said = {task: [content(row) for row in rows] for task, rows in training.items()}
    trained = {row for rows in said.values() for row in rows}
    questions = {row.question for row in trained}
    overlaps = {}
    for task, rows in said.items():
        asked = [content(row) for row in test[task]]
        overlaps[task] = Overlap(
            repeats=len(rows) - len({row[:2] for row in rows}),
            conflicts=sum(answers > 1 for answers in Counter(row[:2] for row in set(rows)).values()),
            in_train=sum(row.question in questions for row in asked),
            leaks=sum(row in trained for row in asked),
            free=sum(not row.choices for row in rows),
        )
    return overlaps


def count_lengths(rows: Sequence[Example], format: Format, encoder: Encoder, *, max_length: int) -> Lengths:
    """Token lengths of ``rows`` as training texts. ``encoder`` has no limit of its own."""
    texts = encoder.training_texts(rows, format)
    bos = len(encoder.encode("", "", eos=False).ids)
    lengths = [len(text.ids) for text in texts]
    return Lengths(
        median=median_low(lengths),
        longest=max(lengths),
        over=sum(length > max_length for length in lengths),
        end_cut=sum(length - 1 > max_length for length in lengths),  # the last one is EOS
        no_room=sum(len(text.ids) - text.answer_start + bos > max_length for text in texts),
    )
