"""The rows of a run, selected and encoded once: kept in the cache for the next run and this node's other processes."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from moslora.console import note
from moslora.data.encode import IGNORE_INDEX, Encoded, Encoder, encode_examples, encoding
from moslora.data.overlap import digest
from moslora.data.select import select
from moslora.data.sources import data_hash, differences, identity, load_training, local_path
from moslora.data.steps import StepPlan
from moslora.download.wheels import home
from moslora.errors import MosloraError, first_line
from moslora.files import discard, once_per_machine, placed, sha256
from moslora.prompts.formats import ASKS_FOR_THE_DATE, TODAY, make_format
from moslora.recipe import DataSection
from moslora.tasks import Task
from moslora.version import PACKAGE

_KEPT = 16
"""Sets of rows in the cache; the oldest makes way."""

_ROWS, _HASH = "rows.arrow", "rows.sha256"

SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "task": pa.string(),
        "input_ids": pa.large_list(pa.int32()),
        "masked": pa.int32(),  # positions without loss, before the labels
        "truncated": pa.bool_(),
    }
)


class RowTable(Sequence[Encoded]):
    """Encoded rows in an Arrow batch of `SCHEMA`, which may lie on disk: a row is built when a step draws it."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.batch = batch
        self.tasks: list[str] = batch["task"].to_pylist()
        ids = batch["input_ids"]
        # Not to_numpy(), which imports pandas.
        self._tokens, self._offsets, self._masked = map(np.from_dlpack, (ids.values, ids.offsets, batch["masked"]))

    @classmethod
    def of(cls, rows: Iterable[Encoded]) -> "RowTable":
        cells = [{**vars(row), "masked": row.labels.count(IGNORE_INDEX)} for row in rows]
        return cls(pa.RecordBatch.from_pylist(cells, schema=SCHEMA))

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, row: Any) -> Any:
        row = range(len(self))[row]
        if isinstance(row, range):
            return [self[i] for i in row]
        ids = self._tokens[self._offsets[row] : self._offsets[row + 1]].tolist()
        masked = int(self._masked[row])
        id, truncated = (self.batch[column][row].as_py() for column in ("id", "truncated"))
        return Encoded(id, self.tasks[row], ids, [IGNORE_INDEX] * masked + ids[masked:], truncated)

    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return list(map(int, np.diff(self._offsets)))

    def token_count(self) -> int:
        return len(self._tokens)

    def label_count(self) -> int:
        """As `moslora.data.steps.label_count`."""
        return int((np.diff(self._offsets) - np.maximum(self._masked, 1)).sum())

    def sha256(self) -> str:
        """Of every row's length, tokens and positions without loss."""
        digest = hashlib.sha256()
        for column in (self._offsets, self._tokens, self._masked):
            digest.update(np.ascontiguousarray(column).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class TrainingData:
    """The encoded rows of a run, and what is known of them."""

    rows: RowTable  # trained on
    validation: RowTable  # set aside
    contents: bytes  # the `digest` of each training row, end to end
    sha256: str  # of the training rows' examples
    source_sha256: str  # of all rows of the source, before the seed chose among them: the same under every seed
    encoding: dict[str, str]  # hashes of the tokenizer and the chat template, see `moslora.data.encode.encoding`
    notes: list[str]  # what a user should know of them

    @cached_property
    def tokens_sha256(self) -> str:
        """Of what a step computes with, which another tokenizer or chat template changes."""
        return self.rows.sha256()

    def facts(self, plan: StepPlan, *, steps: int) -> dict[str, Any]:
        """For the manifest; ``tasks`` counts the rows of each task in the first ``steps`` of ``plan``."""
        drawn = Counter(self.rows.tasks[row] for step in range(steps) for row in plan[step])
        tasks = {task: drawn[task] for task in dict.fromkeys(self.rows.tasks) if task in drawn}
        return {
            "sha256": self.sha256,
            "source_sha256": self.source_sha256,
            "tokens_sha256": self.tokens_sha256,
            "tasks": tasks,
            "notes": self.notes,
        }

    def remarks(self) -> list[str]:
        rows, truncated = self.rows, self.rows.batch["truncated"].true_count
        lines = [
            f"{len(rows):,} training rows of {rows.token_count() / len(rows):.1f} tokens on average, of which"
            f" {rows.label_count() / len(rows):.1f} labelled; {len(self.validation)} validation rows"
        ]
        if truncated:
            share = truncated / len(rows)
            lines.append(f"{truncated:,} rows ({share:.1%}) lost the start of their question to data.max_length")
        return lines + [f"note: {note}" for note in self.notes]


@dataclass(frozen=True)
class RunRows:
    """The rows of a run, not loaded yet: those of ``tasks`` that ``data`` describes (`moslora.data.select`)."""

    data: DataSection
    tasks: Sequence[Task]
    encoder: Encoder
    seed: int

    def prepare(self) -> TrainingData:
        """The rows, from the cache if they are there. If it cannot be written, they are made for this process alone."""
        folder = self._folder()
        if found := _read(folder):
            return found
        with once_per_machine(folder):
            if found := _read(folder):  # made by the process that had the lock
                return found
            made = self._make()
            try:
                _write(made, folder)
            except (MosloraError, OSError) as error:
                note(f"the prepared rows are not kept: {first_line(error)}")
        return made

    def at_hand(self) -> TrainingData | None:
        """The rows, if they are in the cache or all their sources are files of this machine."""
        local = all(not task.hub if task.own else local_path(self.data.source) for task in self.tasks)
        return self.prepare() if local else _read(self._folder())

    def _make(self) -> TrainingData:
        data, format = self.data, make_format(self.data.format, self.encoder.tokenizer)
        rows = load_training(self.tasks, source=data.source)
        trained, aside, left_out = select(data, rows, seed=self.seed)
        training, validation = (
            RowTable.of(encode_examples(examples, format, self.encoder, loss_on=data.loss_on))
            for examples in (trained, aside)
        )
        notes = [*differences(data.source, data.tasks), *left_out]
        if ASKS_FOR_THE_DATE in format.identity():
            notes.append(f"the chat template asks for the date, which is always {TODAY:%d %b %Y} here")
        return TrainingData(
            rows=training,
            validation=validation,
            contents=b"".join(map(digest, trained)),
            sha256=data_hash(trained),
            source_sha256=data_hash(rows),
            encoding=encoding(self.encoder.tokenizer, data.format),
            notes=notes,
        )

    def _folder(self) -> Path:
        """Named by all that the rows depend on: recipe, source, tokenizer, chat template and code."""
        made_by = encoding(self.encoder.tokenizer, self.data.format)
        parts: list[Any] = [self.data.model_dump(mode="json"), self.seed, made_by]
        parts += [[task.name for task in self.tasks], identity(self.tasks, "train", source=self.data.source)]
        parts += [version(package) for package in ("pyarrow", "tokenizers")]
        code = [path for room in ("tasks", "data", "prompts") for path in sorted(PACKAGE.glob(f"{room}/*.py"))]
        parts += [sha256(path) for path in code]  # in place of a number that somebody has to raise
        return home() / "rows" / hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _read(folder: Path) -> TrainingData | None:
    """The rows in ``folder``; ``None`` if there are none, or they are damaged."""
    try:
        if (folder / _HASH).read_text(encoding="utf-8") != sha256(folder / _ROWS):
            return None
        file = pa.ipc.open_file(pa.memory_map(str(folder / _ROWS)))
        rows, validation = (RowTable(file.get_batch(number)) for number in range(2))
        known = file.schema.metadata
        return TrainingData(rows, validation, known[b"contents"], **json.loads(known[b"facts"]))
    except (OSError, UnicodeDecodeError):
        return None


def _write(made: TrainingData, folder: Path) -> None:
    facts = {
        "sha256": made.sha256,
        "source_sha256": made.source_sha256,
        "encoding": made.encoding,
        "notes": made.notes,
    }
    known = {"facts": json.dumps(facts), "contents": made.contents}
    with placed(folder) as new:
        new.mkdir()
        with pa.ipc.new_file(str(new / _ROWS), SCHEMA.with_metadata(known)) as file:
            file.write_batch(made.rows.batch)
            file.write_batch(made.validation.batch)
        (new / _HASH).write_text(sha256(new / _ROWS), encoding="utf-8")
    with suppress(OSError):  # another process may remove the same
        for old in sorted(folder.parent.iterdir(), key=lambda path: path.stat().st_mtime)[:-_KEPT]:
            discard(old)
