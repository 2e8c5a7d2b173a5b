"""The runs of an experiment and their answers as two tables, to be committed or handed on beside its card.

``runs.parquet``     a row per run, and one for the base
``answers.parquet``  a row per run that was scored and question, with the outcomes as columns, in single precision

The card is ``experiment.json`` (`moslora.compare.index`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from moslora.compare.index import EXPERIMENT, read_index
from moslora.errors import MosloraError, first_line
from moslora.runs.answers import TaskAnswers
from moslora.runs.evaluation import Evaluation
from moslora.runs.outcomes import OUTCOMES

RUNS = "runs.parquet"
ANSWERS = "answers.parquet"
TABLES = (RUNS, ANSWERS)

KEY = {"arm": "string", "rate": "double", "seed": "int64"}
"""Columns of both tables, without a value for the base."""

COLUMNS = {
    RUNS: {
        **KEY,
        "role": "string",
        "validation_loss": "double",
        "lowest_loss": "double",
        "seconds": "double",
        "diverged": "bool",
        "parameters": "int64",
        "device": "string",
        "begun": "string",
        "strength": "double",
    },
    ANSWERS: {**KEY, "task": "string", "id": "string", "cluster": "string", "gold": "int16"},
}
"""The columns of each table and their types; answers have those of their outcomes, too."""

LATER = ("strength",)
"""Columns that tables of earlier versions do not have."""

Row = dict[str, Any]


@dataclass(frozen=True)
class FinishedRun:
    """One finished run of an experiment, in its tables or in a folder, or its base.

    Attributes:
        arm: ``None`` of the base, as are its rate and its seed.
        rate: the learning rate.
        role: what it is for: ``searched`` ones choose the rate, and have no answers.
        validation_loss: of its result, infinite if it was not finite; ``None`` without any.
        lowest_loss: the lowest of its validation losses; ``None`` without any that was finite.
        seconds: of its training, if they are known.
        diverged: its training ended with a loss that was not finite, so that it has no answers.
        parameters: number of those that were trained, if it is known.
        device: that it was trained on, if it is known.
        begun: when, in UTC, if it is known.
        strength: at which it applies the adapter of another arm; ``None`` for a run that trained its own.
        evaluation: its answers to the planned questions, in the order of their ids.
    """

    arm: str | None
    rate: float | None
    seed: int | None
    role: Literal["searched", "scored", "base"]
    validation_loss: float | None = None
    lowest_loss: float | None = None
    seconds: float | None = None
    diverged: bool = False
    parameters: int | None = None
    device: str | None = None
    begun: str | None = None
    strength: float | None = None
    evaluation: Evaluation | None = None

    @property
    def key(self) -> tuple[str | None, float | None, int | None]:
        return self.arm, self.rate, self.seed

    @property
    def name(self) -> str:
        if self.role == "base":
            return "base"
        return f"{self.arm}-{self.rate:g}-{self.seed}"


def write_tables(folder: Path, runs: Sequence[FinishedRun]) -> None:
    """Writes both tables into ``folder``. The same runs are the same bytes."""
    _write(folder / RUNS, [vars(run) for run in runs])
    places: dict[str, int] = {}  # task -> its place, in the order in which they were asked
    rows = []
    for run in runs:
        for task, its in run.evaluation.tasks.items() if run.evaluation else ():
            place = places.setdefault(task, len(places))
            columns = {"id": its.ids, "cluster": its.clusters, "gold": its.gold, **its.outcomes}
            there = {name: column for name, column in columns.items() if column}
            for row in zip(*there.values(), strict=True):
                of_run = {"arm": run.arm, "rate": run.rate, "seed": run.seed, "task": task}
                rows.append((place, of_run | dict(zip(there, row, strict=True))))
    rows.sort(key=lambda one: (one[0], one[1]["id"]))  # all answers to a question together, which compresses best
    _write(folder / ANSWERS, [row for _, row in rows])


def read_tables(folder: Path) -> Sequence[FinishedRun]:
    """The runs of an experiment that are in tables, in the order in which they were written; none if ``folder`` has no
    tables. Files that did not change are read once.

    Raises:
        MosloraError: a file is missing, damaged, or another program's.
    """
    if not any((folder / name).exists() for name in TABLES):
        return ()
    stats = [file.stat() for file in (folder / name for name in (EXPERIMENT, *TABLES)) if file.exists()]
    return _read_once(folder, tuple((stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats))


@lru_cache(maxsize=4)
def _read_once(folder: Path, version: tuple[tuple[int, int, int], ...]) -> Sequence[FinishedRun]:
    """The runs in this version of the files."""
    index = read_index(folder)
    if index is None or index.card is None:
        raise MosloraError(f"{folder / EXPERIMENT}: says nothing of the tables beside it; pack the runs again")
    rows: dict[Any, dict[str, list[Row]]] = {}
    for row in _read(folder / ANSWERS):
        of_run = rows.setdefault((row["arm"], row["rate"], row["seed"]), {})
        of_run.setdefault(row["task"], []).append(row)
    evaluations = {}
    for key, of_run in rows.items():
        tasks = {task: _answers(of_task) for task, of_task in of_run.items()}
        evaluations[key] = Evaluation(folder, index.card.asked, tasks)
    runs = []
    for row in _read(folder / RUNS):
        run = FinishedRun(**{name: row[name] for name in COLUMNS[RUNS] if name in row})
        evaluation = evaluations.get(run.key)
        if evaluation is not None and run.role == "scored":
            evaluation = replace(evaluation, folder=folder / run.name, base=evaluations.get((None, None, None)))
        runs.append(replace(run, evaluation=evaluation))
    return runs


def _answers(rows: Sequence[Row]) -> TaskAnswers:
    """The answers to the questions of one task. A column without a value is one that this task does not have."""
    columns = {name: tuple(row[name] for row in rows) for name in rows[0]}
    there = {name: column for name, column in columns.items() if None not in column}
    outcomes = {name: there[name] for name in OUTCOMES if name in there}
    return TaskAnswers(there["id"], there.get("gold", ()), outcomes, clusters=there.get("cluster", ()))


def _write(file: Path, rows: Sequence[Row]) -> None:
    import pyarrow as pa  # here, as it takes time and most commands read no tables
    from pyarrow import parquet

    columns = dict(COLUMNS[file.name])
    for outcome in OUTCOMES:
        if outcome not in columns and any(outcome in row for row in rows):
            columns[outcome] = "float"
    content = pa.BufferOutputStream()
    parquet.write_table(
        pa.Table.from_pylist(rows, schema=pa.schema(list(columns.items()))),
        content,
        compression="zstd",
        compression_level=19,
        use_dictionary=[name for name, kind in columns.items() if kind == "string"],
        column_encoding={name: "BYTE_STREAM_SPLIT" for name, kind in columns.items() if kind in ("float", "double")},
        write_page_checksum=True,
    )
    file.write_bytes(content.getvalue())


def _read(file: Path) -> list[Row]:
    """The rows of a table, whose pages are checked against their sums."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file, page_checksum_verification=True) as opened:
            table = opened.read()
            table.select([name for name in COLUMNS[file.name] if name not in LATER])  # of which none may be missing
            return table.to_pylist()
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise MosloraError(
            f"{file}: missing, damaged, or not of an experiment ({first_line(error)}); pack or download it again"
        ) from None
