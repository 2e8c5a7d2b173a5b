"""The scores of an adapter for its card, and of its base where it was asked the same."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from moslora.data.hub import MIXTURE as MIXED
from moslora.data.sources import MIXTURE
from moslora.download.wheels import DATA_WHEEL
from moslora.errors import MosloraError
from moslora.runs.manifest import WEIGHTS
from moslora.runs.run import EVALUATIONS, Run, base_of
from moslora.tasks import INSTRUCTION, TASKS

MACRO = "macro average"

Score = dict[str, Any]
"""The numbers of a task in ``results.json``."""


class Scored(NamedTuple):
    """One evaluation, as far as a card shows it."""

    settings: dict[str, Any]
    tasks: dict[str, Score]  # the macro average the last, of several
    leaks: dict[str, int]  # task -> its questions among the training rows

    @property
    def model(self) -> tuple[str | None, str | None]:
        """What was scored: the adapter, ``None`` for the base alone, and the base."""
        facts = self.settings["metadata"]
        return facts.get("adapter"), facts.get("fingerprint")

    def same(self, other: "Scored", name: str) -> bool:
        """Whether both were asked the same questions of a task, in the same way."""
        if name not in other.tasks or self.tasks[name]["n"] != other.tasks[name]["n"]:
            return False
        ways = ["protocol", "format", "dtype", "beams"]
        if self._may_be_cut(name) or other._may_be_cut(name):
            ways.append("max_length")
        if any(self.settings.get(way) != other.settings.get(way) for way in ways):
            return False
        names = [name]
        if name == MACRO:
            names = [task for task in self.tasks if task != MACRO]
        own_data = self.settings["data"]
        other_data = other.settings["data"]
        return all(own_data.get(task) == other_data.get(task) for task in names)

    def _may_be_cut(self, name: str) -> bool:
        """Whether the limit in tokens cut a question of a task, or nobody knows."""
        return self.tasks[name].get("truncated") != 0


def section(run: Run, manifest: Mapping[str, Any], scored: str, *, task: str | None) -> str:
    """The card's text: the results of the adapter with this ``manifest``, not of its ``run``'s other checkpoints, and
    beside them its base's.

    ``scored`` says what was measured; of ``task`` alone, if it is given.
    """
    adapter = manifest["sha256"][WEIGHTS]
    base = manifest["base"]["fingerprint"]
    lines = []
    for path in sorted(run.path.glob(f"{EVALUATIONS}/*/results.json")):
        own = _read(path, task, model=(adapter, base))
        if own is None:
            continue
        plain = None
        of_base = base_of(path.parent) / path.name
        if of_base.is_file():
            plain = _read(of_base, task, model=(None, base))
        lines.append(_line(own, plain))
    if not lines:
        return "Not evaluated yet (`moslora eval`)."
    listed = "\n".join(lines)
    return f"{scored}, in percent, with 95 % intervals:\n\n{listed}"


def _read(path: Path, only: str | None, *, model: tuple[str | None, str]) -> Scored | None:
    """An evaluation; ``None`` if it has no task that is shown, or is of another model."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        tasks = {task: score for task, score in results["tasks"].items() if only in (None, task)}
        if len(tasks) > 1:
            tasks[MACRO] = results["macro"]
        without_leaks = results.get("without_leaks") or {}
        found = Scored(results["settings"], tasks, leaks=without_leaks.get("leaks", {}))
        _ = found.settings["data"]  # what is read later is there
        for score in tasks.values():
            _ = score["n"]
        if found.model != model or not tasks:
            return None
        return found
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MosloraError(f"{path}: not an evaluation's results ({error!r}); remove its folder") from None


def _line(own: Scored, plain: Scored | None) -> str:
    settings = own.settings
    facts = settings["metadata"]
    over = ""
    if facts.get("quantization"):
        over = f" on the {facts['quantization']} base"
    metric = settings["primary"]
    if not any(metric in score for score in own.tasks.values()):  # all of them are answered in words
        metric = "accuracy"
    origins = dict.fromkeys(origin(task, facts["source"]) for task in own.tasks if task != MACRO)
    return (
        f"- Protocol `{settings['protocol']}`, format `{settings['format']}`, {settings['dtype']}{over},"
        f" questions from {', '.join(origins)}, {metric.replace('_', ' ')}: {', '.join(_said(own, plain, metric))}"
    )


def _said(own: Scored, plain: Scored | None, metric: str) -> Iterator[str]:
    """Each task with its score, and that of the base if it was asked the same."""
    for name, score in own.tasks.items():
        text = f"{name} {_value(score, metric)} of {score['n']:,}"
        if own.leaks.get(name):
            text += f" ({own.leaks[name]:,} of them training rows)"
        if plain is not None and own.same(plain, name):
            text += f", the base {_value(plain.tasks[name], metric)}"
        yield text


def _value(score: Score, metric: str) -> str:
    if metric not in score:  # answers in words have no accuracy per character
        metric = "accuracy"
    share = f"{100 * score[metric]:.1f}"
    low, high = score[metric.replace("accuracy", "interval")]
    return f"{share} ({100 * low:.1f} to {100 * high:.1f})"


def origin(task: str, source: str) -> str:
    """Where the rows of ``task`` are from: ``source`` has those of the eight sets, and the bare instructions."""
    entry = TASKS.get(task)
    if not entry and task != INSTRUCTION:
        return "its own source, named in the recipe"
    if entry and entry.hub and source == "hub":
        return f"`{entry.hub.path}` on the hub"
    public = {"wheel": f"PyPI's `{DATA_WHEEL.name}`", MIXTURE: f"`{MIXED.path}` on the hub"}
    return public.get(source, f"`{last_part(source)}`")


def last_part(path: str) -> str:
    """The last part of a local path, as all that a card says of it."""
    return f"./{Path(os.path.expanduser(path)).resolve().name}"
