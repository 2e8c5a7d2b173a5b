"""The rows of a run, selected and encoded once: kept in the cache and read from the disk as steps draw them."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from shutil import rmtree
from typing import Any, overload

import numpy as np
import pyarrow as pa
from filelock import FileLock

import moslora
from moslora.console import note
from moslora.data.encode import IGNORE_INDEX, Encoded, Encoder, encode_examples
from moslora.data.select import select
from moslora.data.sources import data_hash, identity
from moslora.download.wheels import home
from moslora.errors import MosloraError, first_line
from moslora.files import LOCK, sha256, write_json
from moslora.prompts import FORMATS
from moslora.recipe import DataSection, EvaluationSection

_KEPT = 16
"""Sets of rows in the cache. A new one takes the place of the oldest."""

_ROWS, _FACTS = "rows.arrow", "facts.json"

_COLUMNS = pa.schema(
    {
        "id": pa.string(),
        "task": pa.string(),
        "input_ids": pa.large_list(pa.int32()),
        "masked": pa.int32(),  # labels are the token ids behind this many positions without loss
        "truncated": pa.bool_(),
    }
)


class Rows(Sequence[Encoded]):
    """Rows in a table, which may lie on disk; each is built when it is asked for."""

    def __init__(self, table: pa.RecordBatch) -> None:
        ids = table["input_ids"]
        self.table = table
        self.tasks: list[str] = table["task"].to_pylist()
        self._tokens, self._offsets = ids.values.to_numpy(), ids.offsets.to_numpy()
        self._masked = table["masked"].to_numpy()

    @classmethod
    def of(cls, rows: Iterable[Encoded]) -> "Rows":
        cells = [(row.id, row.task, row.input_ids, row.labels.count(IGNORE_INDEX), row.truncated) for row in rows]
        columns = zip(*cells, strict=True) if cells else [()] * len(_COLUMNS)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, _COLUMNS, strict=True)]
        return cls(pa.record_batch(arrays, schema=_COLUMNS))

    def __len__(self) -> int:
        return len(self.tasks)

    @overload
    def __getitem__(self, row: int) -> Encoded: ...
    @overload
    def __getitem__(self, row: slice) -> list[Encoded]: ...
    def __getitem__(self, row: int | slice) -> Encoded | list[Encoded]:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        task = self.tasks[row]  # an IndexError behind the last one
        row %= len(self)
        ids = self._tokens[self._offsets[row] : self._offsets[row + 1]].tolist()
        masked = int(self._masked[row])
        labels = [IGNORE_INDEX] * masked + ids[masked:]
        return Encoded(self.table["id"][row].as_py(), task, ids, labels, self.table["truncated"][row].as_py())

    @property
    def token_count(self) -> int:
        return len(self._tokens)

    @property
    def label_count(self) -> int:
        """As `moslora.data.steps.label_count`."""
        return int((np.diff(self._offsets) - np.maximum(self._masked, 1)).sum())

    @property
    def truncated_count(self) -> int:
        return int(np.count_nonzero(self.table["truncated"].to_numpy(zero_copy_only=False)))


@dataclass(frozen=True)
class Facts:
    """What is known of the rows beside themselves.

    Attributes:
        sha256: of the training rows' examples.
        joins: whether the tokenizer joins the end of a prompt to the answer.
        leaks: as in `moslora.data.select.Selection`.
        incomparable: likewise.
    """

    sha256: str
    joins: bool
    leaks: dict[str, int] | None
    incomparable: int


@dataclass(frozen=True)
class Prepared:
    """The rows of a run."""

    training: Rows
    validation: Rows
    facts: Facts


def prepare_rows(data: DataSection, evaluation: EvaluationSection, encoder: Encoder, *, seed: int) -> Prepared:
    """The rows that ``data`` describes, from the cache if they are there; else they are made, once per node.

    Without a cache, on a full disk for one, they are made for this process alone.
    """
    folder = home() / "rows" / _key(data, evaluation, encoder, seed=seed)
    if found := _read(folder):
        return found
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(folder / LOCK))
        except (OSError, NotImplementedError) as error:  # NotImplementedError: a file system without locks
            note(f"the prepared rows are not kept: {first_line(error)}")
            return _make(data, evaluation, encoder, seed=seed)
        if found := _read(folder):  # by the process that had the lock
            return found
        made = _make(data, evaluation, encoder, seed=seed)
        try:
            _write(made, folder)
        except (OSError, MosloraError) as error:
            note(f"the prepared rows are not kept: {first_line(error)}")
        return made


def _make(data: DataSection, evaluation: EvaluationSection, encoder: Encoder, *, seed: int) -> Prepared:
    format = FORMATS[data.format]
    selection = select(data, evaluation, seed=seed)
    training, validation = (
        Rows.of(encode_examples(examples, format, encoder, loss_on=data.loss_on))
        for examples in (selection.training, selection.validation)
    )
    joins = not format.joint and any(encoder.joins(format.train(example)) for example in selection.training[:20])
    facts = Facts(data_hash(selection.training), joins, selection.leaks, selection.incomparable)
    return Prepared(training, validation, facts)


def _key(data: DataSection, evaluation: EvaluationSection, encoder: Encoder, *, seed: int) -> str:
    """Of all that the rows depend on: recipe, source, tokenizer and code."""
    parts: list[Any] = [data.model_dump(mode="json"), seed, encoder.identity()]
    parts += identity(data.tasks, "train", source=data.source)
    if data.drop_leaks:
        parts += [evaluation.tasks, *identity(evaluation.tasks, "test", source=evaluation.source or data.source)]
    parts += [version(package) for package in ("pyarrow", "tokenizers")]
    package = Path(moslora.__file__).parent
    code = [package / "tasks.py", *sorted(package.glob("data/*.py")), *sorted(package.glob("prompts/*.py"))]
    parts += [sha256(path) for path in code]  # no number that somebody has to raise
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _read(folder: Path) -> Prepared | None:
    """What lies in ``folder``; ``None`` if there is nothing, or it is damaged."""
    try:
        facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        if facts.pop("rows_sha256") != sha256(folder / _ROWS):
            return None
        batches = pa.ipc.open_file(pa.memory_map(str(folder / _ROWS)))
        return Prepared(Rows(batches.get_batch(0)), Rows(batches.get_batch(1)), Facts(**facts))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _write(made: Prepared, folder: Path) -> None:
    scratch = folder / f".{_ROWS}.writing"
    try:
        with pa.ipc.new_file(str(scratch), _COLUMNS) as file:
            file.write_batch(made.training.table)
            file.write_batch(made.validation.table)
        os.replace(scratch, folder / _ROWS)
    finally:
        scratch.unlink(missing_ok=True)
    write_json(folder / _FACTS, {"rows_sha256": sha256(folder / _ROWS), **asdict(made.facts)})
    with suppress(OSError):  # another process may do the same
        for old in sorted(folder.parent.iterdir(), key=lambda path: path.stat().st_mtime)[:-_KEPT]:
            rmtree(old, ignore_errors=True)
