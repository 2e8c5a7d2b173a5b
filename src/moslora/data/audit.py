"""Counts of a source's rows by task: their lengths, repeats, and how much of the test is in the training set.

`moslora.data.overlap` defines when two rows are the same.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from statistics import median_low

from transformers import PreTrainedTokenizerBase

from moslora.choices import FormatName, Split
from moslora.data import local
from moslora.data.encode import Encoder
from moslora.data.overlap import content
from moslora.data.sources import differences, load_examples, load_training, local_path
from moslora.errors import UsageError
from moslora.prompts.formats import make_format
from moslora.tasks import INSTRUCTION, Example, Task

Rows = Mapping[str, Sequence[Example]]
"""Task -> its rows."""

HEADER = ["task", "train", "test", "median", "longest", "cut", "repeats", "conflicts", "test in train", "leaks"]
LEGEND = """
median, longest: tokens of a training row. cut: training rows over the limit, which lose the start of their question.
repeats: training rows whose question and choices came before. conflicts: questions and choices with several answers.
test in train: test rows whose question is a training row's. leaks: those with the same choices and answer."""


@dataclass(frozen=True)
class Overlap:
    """Repeated rows of one task; n equal rows are n − 1 repeats."""

    repeats: int  # training rows that repeat a question with its choices
    conflicts: int  # questions with their choices that have more than one answer in training
    in_train: int  # test rows whose question is in a training row, of whatever task
    leaks: int  # … with the same choices and answer


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
        lengths = [len(text.ids) for text in encoder.training_texts(training[task], rendered)]
        cut = f"{sum(length > max_length for length in lengths) / len(lengths):.1%}" if lengths else "–"
        measured = (median_low(lengths), max(lengths)) if lengths else ("–", "–")
        cells = (len(lengths), len(test[task]), *measured, cut, *astuple(found))
        table.append([task, *(f"{cell:,}" if isinstance(cell, int) else cell for cell in cells)])
    if leaks := sum(found.leaks for found in overlaps.values()):
        notes.append(f"{leaks:,} test questions are training rows; moslora eval also scores without them")
    return table, notes


def read(tasks: Sequence[Task], *, source: str) -> tuple[Rows, Rows]:
    """Training and test rows by task, the same tasks in both; see `audit_rows`."""
    path = local_path(source)

    def there(split: Split) -> list[Task]:  # a folder may lack files, and a file has training rows alone
        having = [task for task in tasks if split == "test" or "train" in task.splits]
        if path and path.is_file():
            return [task for task in having if task.own or split == "train"]
        return [task for task in having if task.own or not path or local.find_file(path, task, split)]

    trained = load_training(there("train"), source=source)
    tested = [row for task in there("test") for row in load_examples(task, "test", source=source)]
    found = {row.task for row in (*trained, *tested)}
    names = [name for name in (*(task.name for task in tasks), INSTRUCTION) if name in found]
    if not names:
        raise UsageError(f"{source}: contains no rows of {', '.join(task.name for task in tasks)}")
    training, test = ({name: [row for row in rows if row.task == name] for name in names} for rows in (trained, tested))
    return training, test


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
        )
    return overlaps
