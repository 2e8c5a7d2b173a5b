"""Runs of an experiment and their answers as two tables, to be committed or shared.

``runs.parquet``     a row per run, and one for the base
``answers.parquet``  a row per scored run and question, with the outcomes as columns, in single precision

The card is ``experiment.json`` (`moslora.compare.index`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import itemgetter
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
"""Columns of both tables that identify a run, empty for the base -> type."""

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
"""Table -> column -> type. Answers also have a column for each outcome."""

LATER = ("strength",)
"""Columns that are missing in tables of earlier versions."""

Row = dict[str, Any]


@dataclass(frozen=True)
class FinishedRun:
    """A finished run of an experiment, in its tables or in a folder; or the base of its runs.

    Attributes:
        arm: name of its arm; ``None`` for the base.
        rate: its learning rate; ``None`` for the base.
        seed: its seed; ``None`` for the base.
        role: ``searched`` for a run that only helps to choose the learning rate and has no answers; ``scored`` for one
            that has them unless it diverged; ``base`` for the base.
        validation_loss: loss of its result, infinite if it was not finite; ``None`` without validation.
        lowest_loss: lowest finite validation loss; ``None`` without one.
        seconds: duration of its training, if known.
        diverged: whether its training ended with a loss that was not finite; then it has no answers.
        parameters: number of trained parameters, if known.
        device: device that trained it, if known.
        begun: time of its start in UTC, if known.
        strength: strength at which it applies another arm's adapter; ``None`` for a run that was trained.
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
        """Arm, learning rate and seed."""
        return self.arm, self.rate, self.seed

    @property
    def name(self) -> str:
        """Name of the run, or "base"."""
        if self.role == "base":
            return "base"
        return f"{self.arm}-{self.rate:g}-{self.seed}"


def write_tables(folder: Path, runs: Sequence[FinishedRun]) -> None:
    """Write both tables into ``folder``. The same runs give the same bytes."""
    _write(folder / RUNS, [vars(run) for run in runs])
    rows_by_task: dict[str, list[Row]] = {}  # in the order in which the tasks were asked
    for run in runs:
        for task, answers in run.evaluation.tasks.items() if run.evaluation else ():
            columns = {"id": answers.ids, "cluster": answers.clusters, "gold": answers.gold, **answers.outcomes}
            present = {name: column for name, column in columns.items() if column}
            for values in zip(*present.values(), strict=True):
                key = {"arm": run.arm, "rate": run.rate, "seed": run.seed, "task": task}
                rows_by_task.setdefault(task, []).append(key | dict(zip(present, values, strict=True)))
    rows = []
    for of_task in rows_by_task.values():
        rows += sorted(of_task, key=itemgetter("id"))  # all answers to a question together, which compresses best
    _write(folder / ANSWERS, rows)


def read_tables(folder: Path) -> Sequence[FinishedRun]:
    """Return the runs in the tables of ``folder``, in the order in which they were written; empty without tables.

    Files that did not change are read once.

    Raises:
        MosloraError: a file is missing, damaged, or another program's.
    """
    if not any((folder / name).exists() for name in TABLES):
        return ()
    stats = [file.stat() for file in (folder / name for name in (EXPERIMENT, *TABLES)) if file.exists()]
    return _read_once(folder, tuple((stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats))


@lru_cache(maxsize=4)
def _read_once(folder: Path, version: tuple[tuple[int, int, int], ...]) -> Sequence[FinishedRun]:
    """Return the runs in the tables, read once until a file changes, which changes ``version``."""
    index = read_index(folder)
    if index is None or index.card is None:
        raise MosloraError(f"{folder / EXPERIMENT}: says nothing of the tables beside it; pack the runs again")
    rows: dict[Any, dict[str, list[Row]]] = {}
    for row in _read(folder / ANSWERS):
        rows_by_task = rows.setdefault((row["arm"], row["rate"], row["seed"]), {})
        rows_by_task.setdefault(row["task"], []).append(row)
    evaluations = {}
    for key, rows_by_task in rows.items():
        tasks = {task: _answers(rows_of_task) for task, rows_of_task in rows_by_task.items()}
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
    """Return the answers to a task's questions, without the columns that have no values for this task."""
    columns = {name: tuple(row[name] for row in rows) for name in rows[0]}
    present = {name: column for name, column in columns.items() if None not in column}
    outcomes = {name: present[name] for name in OUTCOMES if name in present}
    return TaskAnswers(present["id"], present.get("gold", ()), outcomes, clusters=present.get("cluster", ()))


def _write(file: Path, rows: Sequence[Row]) -> None:
    """Write rows as a table, with the columns that belong to the table of this name."""
    import pyarrow as pa  # slow, and most commands read no tables
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
    """Return the rows of a table, whose checksums are verified."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file, page_checksum_verification=True) as opened:
            table = opened.read()
            table.select([name for name in COLUMNS[file.name] if name not in LATER])  # fails if a column is missing
            return table.to_pylist()
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise MosloraError(
            f"{file}: missing, damaged, or not of an experiment ({first_line(error)}); pack or download it again"
        ) from None
