"""Counts of a source's rows by task: lengths, repeats, and test questions among the training rows.

`moslora.data.overlap` defines which rows are equal.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import chain
from statistics import median_low

from transformers import PreTrainedTokenizerBase

from moslora.choices import BadRows, FormatName, Split
from moslora.data import local
from moslora.data.encode import Encoder, encode_examples
from moslora.data.overlap import content
from moslora.data.sources import differences, load_examples, load_training, local_path, named_on_hub
from moslora.errors import UsageError
from moslora.prompts.formats import make_format
from moslora.tasks import INSTRUCTION, Example, Task

HEADER = ["task", "train", "test", "median", "longest", "cut", "repeats", "conflicts", "test in train", "leaks"]
LEGEND = """
median, longest: tokens of a training row. cut: training rows over the limit, which lose their start.
repeats: training rows whose question and choices came before. conflicts: questions and choices with several answers.
test in train: test rows whose question is a training row's. leaks: those with the same choices and answer."""


@dataclass(frozen=True)
class Overlap:
    """Repeated rows of one task; n equal rows are n − 1 repeats."""

    repeats: int  # training rows that repeat an earlier row's question and choices
    conflicts: int  # questions with their choices that have several answers among the training rows
    in_train: int  # test rows whose question a training row of any task has
    leaks: int  # test rows whose question, choices and answer a training row has


def audit_rows(
    tasks: Sequence[Task],
    *,
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    format: FormatName,
    max_length: int,
    bad_rows: BadRows = "stop",
) -> tuple[list[list[str]], list[str]]:
    """Count the rows of ``source``.

    Bare instructions of a file are a task of their own, the last one. A file has no test rows; `MIXTURE` has the hub's.

    Args:
        tasks: tasks without rows are left out.
        source: of the rows.
        tokenizer: for the lengths.
        format: of the texts whose lengths are counted.
        max_length: limit in tokens; longer rows are counted as cut, but measured whole.
        bad_rows: as in `read_rows`.

    Returns:
        The table, header first, and the notes below it.
    """
    encoder = Encoder(tokenizer, max_length=None)
    rendered = make_format(format, tokenizer)
    training, test = read(tasks, source=source, bad_rows=bad_rows)
    notes = differences(source, [task.name for task in tasks])
    overlaps = count_overlaps(training, test)
    table = [HEADER]
    for task, overlap in overlaps.items():
        rows = encode_examples(training[task], rendered, encoder, loss_on="all")
        lengths = [len(row.input_ids) for row in rows]
        median = median_low(lengths or [0])
        counts = [f"{count:,}" for count in (len(lengths), len(test[task]), median, max(lengths, default=0))]
        cut = sum(length > max_length for length in lengths) / max(1, len(lengths))
        table.append([task, *counts, f"{cut:.1%}", *(f"{count:,}" for count in astuple(overlap))])
    leaks = sum(overlap.leaks for overlap in overlaps.values())
    if leaks:
        notes.append(f"{leaks:,} test questions are training rows; moslora eval also scores without them")
    return table, notes


def read(
    tasks: Sequence[Task], *, source: str, bad_rows: BadRows = "stop"
) -> tuple[dict[str, list[Example]], dict[str, list[Example]]]:
    """Load training and test rows by task, with the same tasks in both; arguments as in `audit_rows`."""
    trained = load_training(
        [task for task in tasks if _has_rows(task, "train", source)], source=source, bad_rows=bad_rows
    )
    tested: list[Example] = []
    for task in tasks:
        if _has_rows(task, "test", source):
            tested += load_examples(task, "test", source=source)
    wanted = [task.name for task in tasks]
    tasks_of_rows = {row.task for row in (*trained, *tested)}
    names = [name for name in (*wanted, INSTRUCTION) if name in tasks_of_rows]
    if not names:
        raise UsageError(f"{source}: contains no rows of {', '.join(wanted)}")
    training = {name: [row for row in trained if row.task == name] for name in names}
    return training, {name: [row for row in tested if row.task == name] for name in names}


def _has_rows(task: Task, split: Split, source: str) -> bool:
    """Return whether the source has this split of ``task``. A folder may lack files; a file and a named data set of the
    hub have only training rows."""
    path = local_path(source)
    if split == "train" and "train" not in task.splits:
        return False
    if named_on_hub(source) and not task.own:
        return split == "train"
    if task.own or path is None:
        return True
    return split == "train" if path.is_file() else local.find_file(path, task, split) is not None


def count_overlaps(
    training: Mapping[str, Sequence[Example]], test: Mapping[str, Sequence[Example]]
) -> dict[str, Overlap]:
    """Count the repeats within each task's training rows, and how many of its test rows are also training rows of any
    task."""
    contents_of = {task: list(map(content, examples)) for task, examples in training.items()}
    trained = set(chain.from_iterable(contents_of.values()))
    questions = {row.question for row in trained}
    overlaps = {}
    for task, rows in contents_of.items():
        tested = list(map(content, test[task]))
        answers = Counter((row.question, row.choices) for row in set(rows))  # number of different answers
        overlaps[task] = Overlap(
            repeats=len(rows) - len(answers),
            conflicts=sum(count > 1 for count in answers.values()),
            in_train=sum(row.question in questions for row in tested),
            leaks=sum(row in trained for row in tested),
        )
    return overlaps
