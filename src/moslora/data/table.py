"""Encoded rows in an Arrow table, which may lie on disk: a row is built when a step draws it."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from moslora.data.encode import IGNORE_INDEX, Encoded

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
    """Rows like a list of them.

    Attributes:
        batch: of `SCHEMA`.
        tasks: of all rows.
    """

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.batch = batch
        self.tasks: list[str] = batch["task"].to_pylist()
        ids = batch["input_ids"]
        # Not to_numpy(), which imports pandas.
        self._tokens, self._offsets, self._masked = map(np.from_dlpack, (ids.values, ids.offsets, batch["masked"]))

    @classmethod
    def of(cls, rows: Iterable[Encoded]) -> "RowTable":
        cells = [(row.id, row.task, row.input_ids, row.labels.count(IGNORE_INDEX), row.truncated) for row in rows]
        columns = zip(*cells, strict=True) if cells else [()] * len(SCHEMA)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
        return cls(pa.record_batch(arrays, schema=SCHEMA))

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
        lengths: list[int] = np.diff(self._offsets).tolist()
        return lengths

    def token_count(self) -> int:
        return len(self._tokens)

    def label_count(self) -> int:
        """Of the labels that `moslora.data.steps.label_count` counts."""
        return int((np.diff(self._offsets) - np.maximum(self._masked, 1)).sum())

    def truncated_count(self) -> int:
        return int(self.batch["truncated"].true_count)
