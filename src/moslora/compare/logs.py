"""Logs of other programs as answers: lm-eval's ``--log_samples``, Inspect's, and tables with an id and a score.

``samples_TASK_DATE.jsonl``   a line per question and filter; the files in a folder are one evaluation
``DATE_TASK_ID.eval``         Inspect's, also ``.json``; those of one model in a folder are one evaluation
``NAME.jsonl``, ``NAME.csv``  ``id``, ``score`` and, if there are several, ``task``; a file is one evaluation

Questions are grouped by a column, or by a path into a row, such as ``doc.passage``. Equal questions are grouped where
the log has their texts.
"""

import csv
import re
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from pydantic_core import from_json

from moslora.compare import inspect_logs
from moslora.compare.compared_run import ComparedRun
from moslora.data.clusters import clusters_of
from moslora.data.row_files import delimiter_of
from moslora.errors import UsageError, first_line
from moslora.runs.answers import TaskAnswers
from moslora.runs.evaluation import Evaluation
from moslora.runs.outcomes import log_softmax
from moslora.runs.predictions import argmax, deciding

SAMPLES = re.compile(r"samples_(.+?)(_\d{4}-\d\d-\d\dT[\d.-]+)?\.jsonl")

SEED = re.compile(r"[-_.]*(?<![a-z0-9])seed[-_.=]?(\d+)(?![a-z0-9])", re.I)
"""Seed in a path, as in lora-seed3."""

PROMPT = "prompt_hash"
HASHES = ("doc_hash", "target_hash", PROMPT)
"""Hashes of a question in a log. Prompts may differ on purpose, as with a chat template."""

BOOLEANS = {"True": 1, "False": 0}
"""Texts of truth values, as Python writes them into a table -> scores."""

PERCENT_ABOVE = 10
"""Score above which a column counts as percent, beside columns of at most 1."""


class Sample(NamedTuple):
    """A question of a log.

    Attributes:
        id: its id in the log.
        scores: by metric while they are of one row of the log; by (metric, filter) once its rows are joined.
        hashes: name -> hash, by the names of `HASHES`.
        gold: position of the right option, -1 if it is not known.
        shared: text that it shares with the questions of its cluster, or "".
        question: hash of the question with its options; ``None`` if the log has no text.
    """

    id: str
    scores: dict[Any, float]
    hashes: Mapping[str, str]
    gold: int = -1
    shared: str = ""
    question: int | None = None


Samples = dict[str, Sample]
"""Id -> sample, of one task."""


def log_files(path: Path) -> list[Path]:
    """Return the log at ``path``, or all logs of lm-eval and Inspect below it."""
    if path.is_file():
        return [path]
    patterns = ("samples_*.jsonl", "*.eval", "[0-9]*T*.json")
    return sorted(file for pattern in patterns for file in path.rglob(pattern))


def read_logs(paths: Sequence[Path], *, cluster: str | None = None) -> list[ComparedRun]:
    """Return the evaluations in these logs, in their order.

    Paths that differ only in a seed are one arm. The arm is named by the parts of its path that not all arms have.

    Args:
        paths: logs, or folders of logs.
        cluster: column, or path into a row, that groups the questions; ``None`` to group only equal ones.

    Raises:
        UsageError: a file is not a log, ``cluster`` groups nothing, or the logs have scores in different units.
    """
    logs: dict[Path, dict[str, Samples]] = {}
    for place, files in _files_by_evaluation(paths).items():
        for file in files:
            _read_file(file, logs.setdefault(place, {}), cluster)
    are_grouped = any(clusters_of(_shared(samples), {}) for log in logs.values() for samples in log.values())
    runs = []
    for place, log in logs.items():
        tasks = {}
        for task, samples in log.items():
            tasks[task] = _columns(samples, _common_filters([other[task] for other in logs.values() if task in other]))
        label = _label(place)
        seed = None
        for number in SEED.findall(label):
            seed = int(number)
        runs.append(ComparedRun(Evaluation(place, None, tasks), place, arm=SEED.sub("", label), seed=seed))
    if cluster is not None and not are_grouped:
        raise UsageError(
            f"--cluster {cluster}: no two questions of these logs have the same value; must be a column, or a path"
            " such as doc.passage, with a text that some questions of a task share"
        )
    _refuse_other_ranges(runs)
    common = set.intersection(*(set(run.arm.split("/")) for run in runs))
    return [replace(run, name="/".join(part for part in run.arm.split("/") if part not in common)) for run in runs]


def _label(place: Path) -> str:
    """Return the path by which an evaluation is named: a file's without its suffix; for Inspect, with the model's name
    in place of the log's."""
    if not place.is_file():
        return str(place)
    if inspect_logs.DATED.fullmatch(place.name):
        return str(place.parent / inspect_logs.model_of(place))
    return str(place.with_suffix(""))


def _files_by_evaluation(paths: Sequence[Path]) -> dict[Path, list[Path]]:
    """Return the path of each evaluation with its files.

    A table is an evaluation. So is a folder of lm-eval's files, and all that Inspect wrote of a model into a folder,
    unless the user names its files.
    """
    evaluations: dict[Path, list[Path]] = {}
    for path in paths:
        files = log_files(path)
        if not files:
            raise UsageError(f"{path}: not a log; the logs of other programs can only be compared with each other")
        for file in files:
            place = file
            if SAMPLES.fullmatch(file.name):
                place = file.parent
            elif file != path and inspect_logs.DATED.fullmatch(file.name):
                place = file.parent / inspect_logs.model_of(file)
            evaluations.setdefault(place, []).append(file)
    return evaluations


def _rows(file: Path) -> Iterator[Any]:
    """Yield the rows of a log: one of Inspect, a CSV table, or JSON lines such as lm-eval's."""
    if file.suffix in inspect_logs.SUFFIXES:
        yield from inspect_logs.read_rows(file)
        return
    with file.open(encoding="utf-8-sig", errors="replace", newline="\n") as text:
        if file.suffix in (".csv", ".tsv"):
            table = text.read()
            yield from csv.DictReader(StringIO(table), delimiter=delimiter_of(table, path=file))
        else:
            yield from map(from_json, filter(str.strip, text))


def _read_file(file: Path, tasks: dict[str, Samples], cluster: str | None) -> None:
    """Add a file's samples to ``tasks``.

    Args:
        file: log of one or more tasks.
        tasks: task -> samples of the evaluation so far.
        cluster: as in `read_logs`.

    Raises:
        UsageError: a row is not one of a log, or repeats a question; or the file has no rows.
    """
    named = SAMPLES.fullmatch(file.name)
    task_of_file = named[1] if named else "questions"
    read = 0
    try:
        for row in _rows(file):
            if "doc_id" in row:
                sample = _sample_of_lm_eval(row)
            else:
                score = row["score"]
                sample = Sample(str(row["id"]), {"score": float(BOOLEANS.get(score, score))}, {})
            sample = sample._replace(question=_question(row), shared=_shared_text(row, cluster))
            task = str(row.get("task") or task_of_file)
            scores = {(metric, str(row.get("filter"))): score for metric, score in sample.scores.items()}
            whole = tasks.setdefault(task, {}).setdefault(sample.id, sample._replace(scores={}))
            if scores.keys() & whole.scores.keys():
                raise UsageError(
                    f"{file}: row {read + 1}: question {sample.id} of {task} appears twice; choose the files of a"
                    " single evaluation"
                )
            whole.scores.update(scores)
            read += 1
    except (KeyError, ValueError, TypeError, AttributeError, csv.Error) as error:
        fault = f"has no {error}" if isinstance(error, KeyError) else first_line(error)
        raise UsageError(f"{file}: row {read + 1}: {fault}; must have id and score, or be lm-eval's") from None
    if not read:
        raise UsageError(f"{file}: no questions")


def _shared_text(row: Mapping[str, Any], cluster: str | None) -> str:
    """Return the value at a path such as ``doc.passage``; empty if the row does not have it."""
    if cluster is None:
        return ""
    value: Any = row
    for name in cluster.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return "" if value is None else str(value)


def _question(row: Mapping[str, Any]) -> int | None:
    """Return a hash of the question: of lm-eval's requests, or of a table's question and options; ``None`` without."""
    question = row.get("arguments")
    if row.get("question"):
        question = [row["question"], row.get("options"), row.get("choices")]
    if not question:
        return None
    return hash(str(question))


def _sample_of_lm_eval(row: Mapping[str, Any]) -> Sample:
    """Return the sample of a row of lm-eval, with every metric that is a number.

    Where the row has log-likelihoods l of options, the right option's log softmax of l, and of l per character, are
    metrics, too. The target names the right option by index or text, and counts only if lm-eval's ``acc`` agrees.
    """
    scores = {}
    for metric in row["metrics"]:
        value = row[metric]
        if isinstance(value, int | float):
            scores[metric] = float(value)
    sample = Sample(str(row["doc_id"]), scores, {name: row[name] for name in HASHES})
    responses = row["filtered_resps"]
    are_options = all(isinstance(response, list) and len(response) == 2 for response in responses)
    # With mutual information each option is there a second time, without its question.
    if not are_options or len(responses) < 2 or "acc_mutual_info" in scores:
        return sample
    likelihoods = tuple(float(likelihood) for likelihood, _ in responses)
    options = [arguments["arg_1"].strip() for arguments in row["arguments"].values()]
    target = str(row["target"]).strip()
    places = [place for place, text in enumerate(options) if target == (str(place) if target.isdecimal() else text)]
    if len(places) != 1:
        return sample
    (gold,) = places
    if "acc" in scores and scores["acc"] != (argmax(likelihoods) == gold):
        return sample
    scores["log_probability_summed"] = log_softmax(likelihoods)[gold]
    if "acc_norm" in scores and all(options):
        per_character = deciding(likelihoods, tuple(map(len, options)))
        if scores["acc_norm"] == (argmax(per_character) == gold):
            scores["log_probability"] = log_softmax(per_character)[gold]
    return sample._replace(gold=gold)


def _common_filters(logs: Sequence[Samples]) -> set[str]:
    """Return the filters of a task that all of these logs have; if there is none, all that occur."""
    filters = [{filter for sample in samples.values() for _, filter in sample.scores} for samples in logs]
    return set.intersection(*filters) or set.union(*filters)


def _columns(samples: Samples, filters: Collection[str]) -> TaskAnswers:
    """Return the answers to a task, with a column for each metric that all questions have under one of these filters.

    With several filters a column is named as in lm-eval's results: metric,filter.
    """
    ids = tuple(sorted(samples))
    rows = [samples[id] for id in ids]
    first = rows[0]
    outcomes = {}
    for key in first.scores:
        if key[1] in filters and all(key in row.scores for row in rows):
            outcomes[",".join(key) if len(filters) > 1 else key[0]] = tuple(row.scores[key] for row in rows)
    hashes = {name: tuple(row.hashes[name] for row in rows) for name in first.hashes}
    gold = tuple(row.gold for row in rows)
    questions: dict[str, Hashable] = {row.id: row.question for row in rows}
    if len(set(questions.values())) == 1:  # an instruction, or no text at all
        questions = {id: id.partition(inspect_logs.EPOCH)[0] for id in ids}
    answers = TaskAnswers(ids, () if -1 in gold else gold, outcomes, hashes)
    return answers.grouped(clusters_of(_shared(samples), questions))


def _refuse_other_ranges(logs: Sequence[ComparedRun]) -> None:
    """Refuse logs whose scores are from 0 to 1 in some and in percent in others."""
    ranges: dict[str, dict[bool, str]] = {}  # score -> whether it is in percent -> its range and log
    for log in logs:
        for task, answers in log.tasks.items():
            for outcome, column in answers.outcomes.items():
                low, high = min(column), max(column)
                if low >= 0 and (high <= 1 or high > PERCENT_ABOVE):
                    by_unit = ranges.setdefault(f"{outcome} of {task}", {})
                    by_unit.setdefault(high > 1, f"{low:g} to {high:g} in {log.path}")
    for score, by_unit in ranges.items():
        if len(by_unit) > 1:
            values = " and ".join(by_unit.values())
            raise UsageError(f"{score}: {values} look like shares and percent; give all in the same unit")


def _shared(samples: Samples) -> dict[str, str]:
    """Return id -> text that a question shares with others, or "", in the order of the answers."""
    return {id: samples[id].shared for id in sorted(samples)}
