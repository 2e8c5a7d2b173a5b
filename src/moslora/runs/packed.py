"""A packed experiment: the small files of its runs as three files of columns.

``runs.parquet``     a row per run: its recipe, its card, and the settings of its evaluations
``metrics.parquet``  a row per run and record of its ``metrics.jsonl``
``answers.parquet``  a row per run, evaluation and question

They stand for run folders that are not there: whatever reads a run or an evaluation by its path reads it from here,
too. Columns without a value are left out, and columns that are not known are ignored.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from moslora.errors import MosloraError, first_line
from moslora.runs.answers import TaskAnswers
from moslora.runs.manifest import RECIPE
from moslora.runs.outcomes import OUTCOMES, with_outcomes
from moslora.runs.predictions import argmax

if TYPE_CHECKING:  # its import takes time, and most commands read no packed experiment
    import pyarrow

RUNS = "runs.parquet"
METRICS = "metrics.parquet"
ANSWERS = "answers.parquet"

COLUMNS = {
    RUNS: ("folder", "arm", "seed", "recipe", "card", "evaluations", "settings"),
    METRICS: ("folder",),
    ANSWERS: ("folder", "evaluation", "task", "id"),
}
"""The columns that each file has."""

NAMES = b"columns"
"""Entry of a file's metadata with the names of its columns: pages have checksums, and the names have none."""

RUN_FOLDERS = "runs"
"""The folder of an experiment that holds its runs."""

MILLION = 1_000_000
"""Evaluations round scores to a millionth of a nat. Whole millionths take half the space of floats, and give the same
floats when they are read."""

Row = dict[str, Any]
Content = TypeVar("Content")


@dataclass(frozen=True)
class PackedRun:
    """The small files of one run.

    Attributes:
        arm: of the experiment.
        seed: of the run.
        recipe: the text of ``recipe.yaml``.
        card: the text of ``run.json``.
        settings: name of an evaluation -> the text of its ``settings.json``.
        metrics: the rows of ``metrics.jsonl``; ``None`` for a number that was not finite.
        answers: name of an evaluation -> task -> answers, in the order of their ids.
    """

    arm: str
    seed: int
    recipe: str
    card: str
    settings: Mapping[str, str]
    metrics: Sequence[Row]
    answers: Mapping[str, Mapping[str, TaskAnswers]]


def write_packed(folder: Path, runs: Mapping[str, PackedRun]) -> None:
    """Writes runs, by name, into ``folder``; the same runs always as the same bytes."""
    ordered = {name: runs[name] for name in sorted(runs)}
    _write(folder / RUNS, _rows_of_runs(ordered))
    _write(folder / METRICS, _rows_of_metrics(ordered))
    _write(folder / ANSWERS, _rows_of_answers(ordered))


def packed_run(path: Path) -> PackedRun | None:
    """The packed run that stands for the folder ``path``; ``None`` if there is none, or the run has its folder."""
    experiment = path.parent.parent
    if path.parent.name != RUN_FOLDERS or (path / RECIPE).is_file() or not (experiment / RUNS).is_file():
        return None
    return read_packed(experiment).get(path.name)


def packed_names(experiment: Path) -> set[str]:
    """The names of the runs that are packed in a folder; none if it has no packed runs."""
    if not (experiment / RUNS).is_file():
        return set()
    return set(read_packed(experiment))


def read_packed(experiment: Path) -> Mapping[str, PackedRun]:
    """The runs that are packed in an experiment's folder, by name. Files that did not change are read once.

    Raises:
        MosloraError: a file is missing, damaged, or another program's.
    """
    try:
        stats = [(experiment / name).stat() for name in COLUMNS]
    except OSError as error:
        raise MosloraError(f"{error.filename}: missing; a packed experiment has {', '.join(COLUMNS)}") from None
    version = tuple((found.st_ino, found.st_mtime_ns, found.st_size) for found in stats)
    return _read_once(experiment, version)


@lru_cache(maxsize=4)
def _read_once(experiment: Path, version: tuple[tuple[int, int, int], ...]) -> Mapping[str, PackedRun]:
    """The runs in this version of the files."""
    runs = _read(experiment / RUNS, _runs)
    metrics = _read(experiment / METRICS, _metrics)
    answers = _read(experiment / ANSWERS, _answers)
    found = {}
    for name, run in runs.items():
        found[name] = replace(run, metrics=metrics.get(name, []), answers=answers.get(name, {}))
    return found


def _rows_of_runs(runs: Mapping[str, PackedRun]) -> list[Row]:
    rows = []
    for name, run in runs.items():
        row: Row = {"folder": name, "arm": run.arm, "seed": run.seed, "recipe": run.recipe, "card": run.card}
        row["evaluations"] = sorted(run.settings)
        row["settings"] = [run.settings[evaluation] for evaluation in row["evaluations"]]
        rows.append(row)
    return rows


def _runs(table: "pyarrow.Table") -> dict[str, PackedRun]:
    found = {}
    for row in table.to_pylist():
        settings = dict(zip(row["evaluations"], row["settings"], strict=True))
        found[row["folder"]] = PackedRun(row["arm"], row["seed"], row["recipe"], row["card"], settings, [], {})
    return found


def _rows_of_metrics(runs: Mapping[str, PackedRun]) -> list[Row]:
    """A number that was not finite becomes NaN, as no value means that the record has no such number."""
    rows = []
    for name, run in runs.items():
        for record in run.metrics:
            numbers = {metric: _or_nan(value) for metric, value in record.items()}
            rows.append({"folder": name, **numbers})
    return rows


def _metrics(table: "pyarrow.Table") -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for row in table.to_pylist():
        name = row.pop("folder")
        record = {metric: _or_none(value) for metric, value in row.items() if value is not None}
        found[name].append(record)
    return found


def _or_nan(value: Any) -> Any:
    """A metric, and NaN for a number that was not finite, which is ``None`` in a record."""
    if value is None:
        return math.nan
    return value


def _or_none(value: Any) -> Any:
    """The inverse of `_or_nan`."""
    if isinstance(value, float) and math.isnan(value):
        return None
    return value


def _rows_of_answers(runs: Mapping[str, PackedRun]) -> list[Row]:
    """The answers of all runs to one question beside each other, which compresses best; tasks in the order in which
    they were asked."""
    rows = []
    order: dict[str, int] = {}  # task -> its place
    for name, run in runs.items():
        for evaluation, tasks in run.answers.items():
            for task, answers in tasks.items():
                order.setdefault(task, len(order))
                for row in _rows_of_task(answers):
                    rows.append({"folder": name, "evaluation": evaluation, "task": task, **row})
    rows.sort(key=lambda row: (row["evaluation"], order[row["task"]], row["id"], row["folder"]))
    scored = [row for row in rows if "scores" in row]
    if all(_is_rounded(row["scores"]) for row in scored):
        for row in scored:
            row["scores"] = _millionths(row["scores"])
    return rows


def _rows_of_task(answers: TaskAnswers) -> Iterator[Row]:
    """A row per question, of the columns that these answers have and that no other column gives."""
    columns = {
        "id": answers.ids,
        "gold": answers.gold,
        "cut": answers.cut,
        "scores": answers.scores,
        "characters": answers.characters,
        "bytes": answers.bytes,
        "text": answers.texts,
        "answer": answers.labels,
    }
    if not answers.scores:
        columns["predicted"] = answers.predicted
    given = with_outcomes(replace(answers, outcomes={})).outcomes
    for outcome, column in answers.outcomes.items():
        if outcome not in given:
            columns[outcome] = column
    there = {name: column for name, column in columns.items() if column}
    for values in zip(*there.values(), strict=True):
        yield dict(zip(there, values, strict=True))


def _answers(table: "pyarrow.Table") -> dict[str, dict[str, dict[str, TaskAnswers]]]:
    """Name of the run -> evaluation -> task -> answers."""
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    keys = zip(columns["folder"], columns["evaluation"], columns["task"], strict=True)
    places: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        places[key].append(place)
    found: dict[str, dict[str, dict[str, TaskAnswers]]] = {}
    for (name, evaluation, task), rows in places.items():
        of_task = {}
        for column, values in columns.items():
            of_task[column] = tuple(values[row] for row in rows)
        found.setdefault(name, {}).setdefault(evaluation, {})[task] = _answers_of_task(of_task)
    return found


def _answers_of_task(columns: Mapping[str, tuple[Any, ...]]) -> TaskAnswers:
    """The answers in these columns, of which some may hold no value for this task."""

    def column(name: str) -> tuple[Any, ...]:
        values = columns.get(name, ())
        if all(value is None for value in values):
            return ()
        return values

    scores = tuple(_nats(row) for row in column("scores"))
    texts = column("text")
    predicted = column("predicted")
    if scores:
        predicted = tuple(argmax(row) for row in scores)
    elif texts and not predicted:  # no text has an answer
        predicted = (None,) * len(texts)
    outcomes = {}
    for outcome in OUTCOMES:
        if column(outcome):
            outcomes[outcome] = column(outcome)
    answers = TaskAnswers(
        ids=columns["id"],
        gold=column("gold"),
        outcomes=outcomes,
        cut=column("cut"),
        scores=scores,
        characters=tuple(tuple(row) for row in column("characters")),
        predicted=predicted,
        texts=texts,
        labels=column("answer"),
        bytes=column("bytes"),
    )
    return with_outcomes(answers)


def _is_rounded(scores: Sequence[float]) -> bool:
    if not all(math.isfinite(score) for score in scores):
        return False
    return _nats(_millionths(scores)) == tuple(scores)


def _millionths(scores: Sequence[float]) -> list[int]:
    return [round(score * MILLION) for score in scores]


def _nats(row: Sequence[float]) -> tuple[float, ...]:
    """Scores that were written as whole millionths, or as they are."""
    if all(isinstance(score, int) for score in row):
        return tuple(score / MILLION for score in row)
    return tuple(row)


def _write(file: Path, rows: Sequence[Row]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    names: dict[str, None] = dict.fromkeys(COLUMNS[file.name])
    for row in rows:
        names |= dict.fromkeys(row)
    texts = pa.list_(pa.string())  # also where all are empty
    types = {"evaluations": texts, "settings": texts}
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        columns[name] = pa.array(values, types.get(name))
    table = pa.table(columns).replace_schema_metadata({NAMES: ",".join(names)})
    content = pa.BufferOutputStream()
    parquet.write_table(
        table,
        content,
        compression="zstd",
        compression_level=19,
        use_dictionary=[field.name for field in table.schema if field.type == pa.string()],
        column_encoding=_encodings(table.schema),
        write_page_checksum=True,
    )
    file.write_bytes(content.getvalue())


def _encodings(schema: "pyarrow.Schema") -> dict[str, str]:
    """Column -> the encoding by which its numbers compress best; by default bytes are written as they are."""
    import pyarrow as pa

    found = {}
    for field in schema:
        if field.type == pa.float64():
            found[field.name] = "BYTE_STREAM_SPLIT"
        elif field.type == pa.list_(pa.float64()):
            found[f"{field.name}.list.element"] = "BYTE_STREAM_SPLIT"
        elif field.type == pa.list_(pa.int64()):
            found[f"{field.name}.list.element"] = "DELTA_BINARY_PACKED"
    return found


def _read(file: Path, content: Callable[["pyarrow.Table"], Content]) -> Content:
    """The ``content`` of a file, whose pages are checked against their sums."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file, page_checksum_verification=True) as opened:
            names = opened.schema_arrow.names
            written = (opened.schema_arrow.metadata or {}).get(NAMES, b"").decode()
            if written != ",".join(names) or not set(COLUMNS[file.name]).issubset(names):
                raise ValueError("other columns")
            without_encoding = [field.name for field in opened.schema_arrow if "binary" in str(field.type)]
            if without_encoding:  # what a flipped bit of the schema makes of a text
                raise ValueError(f"{', '.join(without_encoding)}: bytes instead of text")
            return content(opened.read())
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise MosloraError(
            f"{file}: damaged, or not of a packed experiment ({first_line(error)}); pack it again, or download it again"
        ) from None
