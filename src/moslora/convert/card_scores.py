"""The scores of an adapter for its card, and of its base where it was asked the same."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from moslora.data.hub import MIXTURE as MIXED
from moslora.data.sources import MIXTURE
from moslora.download.wheels import DATA_WHEEL
from moslora.errors import MosloraError
from moslora.recipe import Recipe
from moslora.runs.absolute_paths import last_part
from moslora.runs.adapter_folder import AdapterFolder
from moslora.runs.manifest import WEIGHTS
from moslora.runs.run import EVALUATIONS, base_of
from moslora.tasks import INSTRUCTION, TASKS

MACRO = "macro average"

WAYS = ("protocol", "format", "dtype", "beams")
"""The settings that a score depends on."""

Results = dict[str, Any]
"""The content of ``results.json``."""


class Row(NamedTuple):
    """A task's scores in words, in percent."""

    name: str
    n: int
    leaks: int  # questions among the training rows
    own: str
    base: str  # empty if it was not asked the same


class Scored(NamedTuple):
    """One evaluation, as far as a card shows it."""

    settings: dict[str, Any]  # as in ``results.json``
    metric: str
    sources: list[str]  # of the questions
    rows: list[Row]


def scores_of(folder: AdapterFolder, *, task: str | None) -> list[Scored]:
    """The evaluations of this adapter, not of its run's other checkpoints; of ``task`` alone, if it is given."""
    adapter = folder.manifest["sha256"][WEIGHTS]
    base = folder.manifest["base"]["fingerprint"]
    found = []
    for path in sorted(folder.run.path.glob(f"{EVALUATIONS}/*/results.json")):
        try:
            own = _read(path, model=(adapter, base), only=task)
            plain = _read(base_of(path.parent) / path.name, model=(None, base), only=task)
            if own["tasks"]:
                found.append(_scored(own, plain, folder.recipe))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise MosloraError(f"{path}: not an evaluation's results ({error!r}); remove its folder") from None
    return found


def _read(path: Path, *, model: tuple[str | None, str], only: str | None) -> Results:
    """An evaluation, of the task ``only`` if it is given; without tasks if it is of another model, or not there."""
    if not path.is_file():
        return {"tasks": {}}
    results: Results = json.loads(path.read_text(encoding="utf-8"))
    facts = results["settings"]["metadata"]
    tasks = {}
    if (facts.get("adapter"), facts.get("fingerprint")) == model:
        tasks = {task: score for task, score in results["tasks"].items() if only in (None, task)}
    return results | {"tasks": tasks}


def _scored(own: Results, plain: Results, recipe: Recipe) -> Scored:
    settings = own["settings"]
    tasks = own["tasks"]
    metric = settings["primary"]
    if not any(metric in score for score in tasks.values()):  # all of them are answered in words
        metric = "accuracy"
    leaks = (own.get("without_leaks") or {}).get("leaks", {})
    alike = [task for task in tasks if task in plain["tasks"] and _asked(own, task) == _asked(plain, task)]
    rows = []
    for task, score in tasks.items():
        base = _value(plain["tasks"][task], metric) if task in alike else ""
        rows.append(Row(task, score["n"], leaks.get(task, 0), _value(score, metric), base))
    if len(tasks) > 1:
        asked_alike = alike == [*tasks] and len(tasks) == len(plain["tasks"])
        base = _value(plain["macro"], metric) if asked_alike else ""
        rows.append(Row(MACRO, own["macro"]["n"], 0, _value(own["macro"], metric), base))
    sources = dict.fromkeys(source_of(task, recipe=recipe, source=settings["metadata"]["source"]) for task in tasks)
    return Scored(settings, metric, list(sources), rows)


def _asked(results: Results, task: str) -> list[Any]:
    """What a score depends on besides the model; on the limit in tokens only if it cut a question, or nobody knows."""
    settings = results["settings"]
    score = results["tasks"][task]
    asked = [score["n"], settings["data"].get(task), *(settings.get(way) for way in WAYS)]
    if score.get("truncated") != 0:
        asked.append(settings.get("max_length"))
    return asked


def _value(score: Mapping[str, Any], metric: str) -> str:
    if metric not in score:  # answers in words have no accuracy per character
        metric = "accuracy"
    low, high = score[metric.replace("accuracy", "interval")]
    return f"{100 * score[metric]:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def source_of(task: str, *, recipe: Recipe, source: str) -> str:
    """Where the rows of ``task`` are from: ``source`` has those of the eight sets, and the bare instructions."""
    own = recipe.own_tasks.get(task)
    entry = own or TASKS.get(task)
    if entry and entry.hub and (own or source == "hub"):
        return f"`{entry.hub.path}` on the hub"
    if own or (not entry and task != INSTRUCTION):
        return "a set of its own"
    public = {"wheel": f"PyPI's `{DATA_WHEEL.name}`", MIXTURE: f"`{MIXED.path}` on the hub"}
    return public.get(source, f"`{last_part(source)}`")
