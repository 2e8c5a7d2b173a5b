"""Logs of other programs as answers: lm-eval's ``--log_samples``, and tables with a question's id and its score.

``samples_TASK_DATE.jsonl``   a line per question and filter; the files in a folder are one evaluation
``NAME.jsonl``, ``NAME.csv``  ``id``, ``score`` and, if there are several, ``task``; a file is one evaluation
"""

import csv
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic_core import from_json

from moslora.compare.answers import HASHES, Answers, Log, TaskAnswers
from moslora.errors import UsageError, first_line

SAMPLES = re.compile(r"samples_(.+?)(_\d{4}-\d\d-\d\dT[\d.-]+)?\.jsonl")

SEED = re.compile(
    r"[-_.]*(?<![a-z0-9])seed[-_.=]?(?P<seed>\d+)(?![a-z0-9])"
    r"|(?:(?<![^/])|(?<![-_.])[-_.])s[-_.=]?(?P<s>\d+)(?![^/])",
    re.I,
)
"""A seed named in a path: the word anywhere, as in lora-seed3, or s at the end of a part, as in lora_s3. Models
such as s1-32B and simplescaling__s1 have none: lm-eval writes the / of a name as __."""

NUMBER = re.compile(r"(?<![^/])(?!(?:19|20)\d\d(?![^/]))(\d+)(?![^/])")
"""A number that is a whole part of a path, as in lora/3, but no year."""


class Sample(NamedTuple):
    """A line of a log; ``gold`` is the position of the right option, -1 if it is not known."""

    id: str
    scores: Mapping[str, float]
    hashes: Mapping[str, str]
    gold: int = -1


def log_files(path: Path) -> list[Path]:
    """The log at ``path``, or all of lm-eval's below it."""
    return [path] if path.is_file() else sorted(path.rglob("samples_*.jsonl"))


def read_logs(paths: Sequence[Path]) -> Iterator[Answers]:
    """The evaluations in these logs, in their order. Those of an arm differ only in the seed in their path."""
    places: dict[Path, dict[Path, None]] = {}
    for path in paths:
        if not (found := log_files(path)):
            raise UsageError(f"{path}: no log of another program, and logs are compared with logs alone")
        alone = path.is_dir() and len({file.parent for file in found}) == 1
        for file in found:
            place = path if alone else file.parent if SAMPLES.fullmatch(file.name) else file
            places.setdefault(place, {})[file] = None
    labels = {place: str(place.with_suffix("") if place.is_file() else place) for place in places}
    named = any(SEED.search(label) for label in labels.values())
    split = {place: _without_seed(label, SEED if named else NUMBER) for place, label in labels.items()}
    parts = [arm.split("/") for arm, _ in split.values()]
    for place, files in places.items():
        tasks = {task: _columns(by_filter) for task, by_filter in _read(files).items()}
        arm, seed = split[place]
        name = "/".join(part for part in arm.split("/") if not all(part in others for others in parts))
        yield Answers(Log(), tasks, place, name=name, arm=arm, seed=seed)


def _without_seed(label: str, pattern: re.Pattern[str]) -> tuple[str, int | None]:
    """A path without its seed, and the seed: the last that ``pattern`` finds, ``None`` if there is none. Wherever the
    path has the same seed again it goes, too; other numbers stay."""
    found = [int(match[match.lastindex or 0]) for match in pattern.finditer(label)]
    if not found:
        return label, None
    seed = found[-1]
    return pattern.sub(lambda match: "" if int(match[match.lastindex or 0]) == seed else match[0], label), seed


def _read(files: Iterable[Path]) -> dict[str, dict[str, dict[str, Sample]]]:
    """Task -> filter -> id -> sample."""
    found: dict[str, dict[str, dict[str, Sample]]] = {}
    for file in files:
        named, number = SAMPLES.fullmatch(file.name), 0
        with file.open(encoding="utf-8-sig", errors="replace", newline="\n") as text:
            rows = csv.DictReader(text) if file.suffix == ".csv" else filter(str.strip, text)
            try:
                for number, line in enumerate(rows, 1):
                    row: Any = from_json(line) if isinstance(line, str) else line
                    sample = _of_lm_eval(row) if "doc_id" in row else _of_table(row)
                    task = str(row.get("task") or (named[1] if named else "questions"))
                    samples = found.setdefault(task, {}).setdefault(str(row.get("filter")), {})
                    if samples.setdefault(sample.id, sample) is not sample:
                        once = "an evaluation has each once, so choose the files of one"
                        raise UsageError(f"{file}: row {number}: question {sample.id} of {task} again; {once}")
            except (KeyError, ValueError, TypeError, AttributeError) as error:
                what = f"no column {error}" if isinstance(error, KeyError) else first_line(error)
                raise UsageError(f"{file}: row {number}: {what}; must have id and score, or be lm-eval's") from None
            except csv.Error as error:  # such as a cell of more than 131,072 characters
                raise UsageError(f"{file}: row {number + 1}: {error}; leave all but id, score and task out") from None
        if not number:
            raise UsageError(f"{file}: no questions")
    return found


def _of_table(row: Mapping[str, Any]) -> Sample:
    return Sample(str(row["id"]), {"score": float({"True": 1, "False": 0}.get(row["score"], row["score"]))}, {})


def _of_lm_eval(row: Mapping[str, Any]) -> Sample:
    """Every metric that is a number; and where the log has log-likelihoods l of options, log softmax(l) of the right
    one. Which is right says its index or its text; if lm-eval's ``acc`` says otherwise, it is not known."""
    scores = {name: float(row[name]) for name in row["metrics"] if isinstance(row[name], int | float)}
    id, hashes, options = str(row["doc_id"]), {name: row[name] for name in HASHES}, row["filtered_resps"]
    if len(options) < 2 or "acc_mutual_info" in scores or not all(isinstance(o, list) and len(o) == 2 for o in options):
        return Sample(id, scores, hashes)
    likelihoods, target = [float(likelihood) for likelihood, _ in options], str(row["target"]).strip()
    texts = [arguments["arg_1"].strip() for arguments in row["arguments"].values()]
    gold = int(target) if target.isdecimal() else texts.index(target) if texts.count(target) == 1 else -1
    right = likelihoods.index(best := max(likelihoods)) == gold
    if not 0 <= gold < len(likelihoods) or scores.get("acc", right) != right:
        return Sample(id, scores, hashes)
    log_sum = best + math.log(sum(math.exp(likelihood - best) for likelihood in likelihoods))
    return Sample(id, {**scores, "log_probability": likelihoods[gold] - log_sum}, hashes, gold)


def _columns(by_filter: Mapping[str, Mapping[str, Sample]]) -> TaskAnswers:
    """A column for each metric that all questions have; of several filters, as in lm-eval's results: metric,filter."""
    first = next(iter(by_filter.values()))
    ids = sorted(first)
    outcomes = {
        name + f",{key}" * (len(by_filter) > 1): tuple(samples[id].scores[name] for id in ids)
        for key, samples in by_filter.items()
        for name in next(iter(samples.values())).scores
        if all(id in samples and name in samples[id].scores for id in ids)
    }
    hashes = {name: tuple(first[id].hashes[name] for id in ids) for name in next(iter(first.values())).hashes}
    gold = tuple(first[id].gold for id in ids)
    return TaskAnswers(tuple(ids), () if -1 in gold else gold, outcomes, hashes)
