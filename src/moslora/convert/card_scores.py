"""The scores of an adapter for its card, and of its base where it was asked the same."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moslora.data.hub import MIXTURE as MIXED
from moslora.data.sources import MIXTURE
from moslora.download.wheels import DATA_WHEEL
from moslora.errors import MosloraError
from moslora.recipe import Recipe
from moslora.runs.absolute_paths import last_part
from moslora.runs.adapter_folder import AdapterFolder
from moslora.runs.manifest import WEIGHTS
from moslora.runs.run import EVALUATIONS, RESULTS, base_of
from moslora.tasks import INSTRUCTION, TASKS

MACRO = "macro average"

WAYS = ("protocol", "format", "dtype", "beams")
"""The settings that a score depends on."""

Results = dict[str, Any]
"""The content of ``results.json``."""


def scores_of(folder: AdapterFolder, *, task: str | None) -> list[dict[str, Any]]:
    """The evaluations of this adapter, not of its run's other checkpoints; of ``task`` alone, if it is given.

    Of each its ``settings`` as in ``results.json``, the ``metric``, the ``sources`` of the questions, and ``rows``: a
    task, the number of its questions, how many of them are among the training rows, and the scores of the adapter and
    of its base in words, the latter empty where the base was not asked the same.
    """
    adapter = folder.manifest["sha256"][WEIGHTS]
    base = folder.manifest["base"]["fingerprint"]
    found = []
    for path in sorted(folder.run.path.glob(f"{EVALUATIONS}/*/{RESULTS}")):
        try:
            own = _read(path, model=(adapter, base), only=task)
            plain = _read(base_of(path.parent) / RESULTS, model=(None, base), only=task)
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
    of_model = (facts.get("adapter"), facts.get("fingerprint")) == model
    tasks = {task: score for task, score in results["tasks"].items() if of_model and only in (None, task)}
    return results | {"tasks": tasks}


def _scored(own: Results, plain: Results, recipe: Recipe) -> dict[str, Any]:
    settings = own["settings"]
    scores = own["tasks"]
    metric = settings["primary"]
    if not any(metric in score for score in scores.values()):  # all of them are answered in words
        metric = "accuracy"
    sources = dict.fromkeys(source_of(task, recipe=recipe, source=settings["metadata"]["source"]) for task in scores)
    leaks = (own.get("without_leaks") or {}).get("leaks", {})
    base = {task: score for task, score in plain["tasks"].items() if task in scores and _alike(own, plain, task)}
    if len(scores) > 1:
        if base.keys() == scores.keys() == plain["tasks"].keys():
            base[MACRO] = plain["macro"]
        scores = {**scores, MACRO: own["macro"]}
    rows = []
    for task, score in scores.items():
        beside = _value(base[task], metric) if task in base else ""
        rows.append((task, score["n"], leaks.get(task, 0), _value(score, metric), beside))
    return {"settings": settings, "metric": metric, "sources": list(sources), "rows": rows}


def _alike(own: Results, plain: Results, task: str) -> bool:
    """Whether two models were asked the same of ``task``; with another limit in tokens only if neither question was
    cut."""
    asked = []
    for results in (own, plain):
        settings = results["settings"]
        score = results["tasks"][task]
        limit = settings.get("max_length") if score.get("truncated") != 0 else None
        asked.append((score["n"], settings["data"].get(task), limit, *(settings.get(way) for way in WAYS)))
    return asked[0] == asked[1]


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
