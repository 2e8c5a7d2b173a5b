"""A run on disk: where it lies, and all that is in its folder. Nobody else knows the names of these files.

``recipe.yaml``    the resolved recipe    ``run.json``       the run's card: how it was made, what came out
``metrics.jsonl``  a line per record      ``checkpoints/``   the newest, to resume from
``adapter/``       the result             ``eval/NAME/``     an evaluation of it, or of its base
``contents.bin``   hashes of the training rows, by which an evaluation finds leaks

Importing this does not load torch.
"""

import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from moslora.errors import MosloraError, UsageError, counted
from moslora.files import near_folders, once_per_machine, write_json, write_text, writing
from moslora.recipe import Recipe
from moslora.runs.manifest import MANIFEST, RECIPE, written_recipe

RUN, METRICS, RESULT, CHECKPOINTS, EVALUATIONS = "run.json", "metrics.jsonl", "adapter", "checkpoints", "eval"
SETTINGS, PREDICTIONS, RESULTS = "settings.json", "predictions.jsonl", "results.json"
"""In the folder of an evaluation: its head, a line per question, and the numbers, which are there once it is done."""

BESIDE = re.compile(r"-base$|-step-\d+$")
"""At the end of its name, if it is not of the run's result."""


@dataclass(frozen=True)
class Run:
    """The run in the folder ``path``, which need not exist yet."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def exists(self) -> bool:
        """Whether there is a recipe to train by."""
        return (self.path / RECIPE).is_file()

    @property
    def result(self) -> Path:
        """The adapter folder of the finished run."""
        return self.path / RESULT

    @property
    def finished(self) -> bool:
        return os.path.isfile(self.result / MANIFEST)  # False of a folder of others, where Path.is_file raises

    @property
    def begun(self) -> bool:
        """Whether its training has begun."""
        return "steps" in self.facts

    @property
    def without_result(self) -> bool:
        """Whether training ended, and its result and checkpoints were removed since."""
        return "seconds" in self.facts and not self.adapters

    @property
    def how_to_finish(self) -> str:
        """What to do about a missing result."""
        if self.without_result:
            again = f"moslora train {shlex.quote(str(self.path / RECIPE))} --out FOLDER"
            return f"training ended, but {RESULT}/ is not here any more; train again elsewhere: {again}"
        return f"resume it: {self.resume_command}"

    @property
    def resume_command(self) -> str:
        return f"moslora train {shlex.quote(str(self.path))} --resume"

    @property
    def checkpoints(self) -> list[Path]:
        """The complete checkpoints, oldest first; unfinished ones have other names."""
        found = [path for path in (self.path / CHECKPOINTS).glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))

    @property
    def contents(self) -> Path:
        """`moslora.data.overlap.digest` of each training row, by which an evaluation finds leaks."""
        return self.path / "contents.bin"

    @property
    def adapters(self) -> list[Path]:
        """The adapter folders: the result, then the checkpoints, newest first."""
        return [*([self.result] if self.finished else []), *reversed(self.checkpoints)]

    @property
    def facts(self) -> dict[str, Any]:
        """The content of run.json; empty if the run was killed before it was written, or if it is damaged."""
        try:
            facts = json.loads((self.path / RUN).read_bytes())
        except (OSError, ValueError):
            return {}
        return facts if isinstance(facts, dict) else {}

    def add_facts(self, **facts: Any) -> None:
        """Adds to run.json, also while another process does. A mapping is added to the one that is there."""
        card = self.path / RUN
        with writing(card), once_per_machine(card):
            known = self.facts
            for key, fact in facts.items():
                both = isinstance(fact, dict) and isinstance(known.get(key), dict)
                known[key] = known[key] | fact if both else fact
            write_json(card, known)

    def begin(self, recipe: Recipe, card: dict[str, Any]) -> None:
        """Makes the folder with the recipe and a new ``run.json``; of an older one stays what the run belongs
        to, and the scores of its base and its checkpoints."""
        write_text(self.path / RECIPE, recipe.to_yaml())
        with once_per_machine(self.path / RUN):
            known = self.facts
            kept = {key: fact for key, fact in known.items() if key == "experiment" or key.endswith("_id")}
            results = {name: its for name, its in known.get("results", {}).items() if BESIDE.search(name)}
            write_json(self.path / RUN, card | kept | ({"results": results} if results else {}))

    @cached_property
    def recipe(self) -> Recipe:
        """How it was trained; it grants no trust in remote code."""
        return written_recipe(self.path / RECIPE, by=self.facts.get("versions", {}).get("moslora"))

    def recipe_to_resume(self, overrides: Sequence[str] = ()) -> Recipe:
        """The recipe to train on with; ``overrides`` have to repeat that remote code is trusted."""
        if "imported" in self.facts:
            raise UsageError(f"{self.path}: an imported adapter, which cannot be resumed, only evaluated or merged")
        if (self.path / MANIFEST).is_file() or not self.exists:
            locate_adapter(self.path)  # a clearer message if there is no adapter either
            raise UsageError(
                f"{self.path}: not a run folder with a {RECIPE}, so it cannot be resumed; choose the run folder, or"
                " copy the recipe there from a checkpoint"
            )
        return written_recipe(self.path / RECIPE, overrides, by=self.facts.get("versions", {}).get("moslora"))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of ``metrics.jsonl``, each with a step; none without the file."""
        path, rows = self.path / METRICS, []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
            try:
                row = json.loads(line)
                _ = row["step"] + 0
                rows.append(row)
            except (ValueError, KeyError, TypeError):  # such as the line being written when the run was killed
                continue
        return rows

    @property
    def unfinished_evaluations(self) -> dict[str, tuple[int, int]]:
        """The evaluations that were interrupted, by name: the number of questions answered, and asked; the latter is 0
        if an earlier version did not record it."""
        folders = sorted(file.parent for file in self.path.glob(f"{EVALUATIONS}/*/{SETTINGS}"))
        found = {folder.name: _progress(folder) for folder in folders}
        return {name: progress for name, progress in found.items() if progress}

    @property
    def steps_done(self) -> int:
        """Number of updates that are saved."""
        if self.finished or self.without_result:
            return int(self.facts.get("steps", 0))
        return int(self.checkpoints[-1].name.removeprefix("step-")) if self.checkpoints else 0

    def evaluation(self, name: str | None = None) -> Path:
        """The folder of the evaluation called ``name``, or of the only one, or of the one that the recipe names."""
        every = sorted(path.parent for path in self.path.glob(f"{EVALUATIONS}/*/{SETTINGS}"))
        found = [path for path in every if not BESIDE.search(path.name)]
        names = ", ".join(path.name for path in found or every if path != base_of(path))
        if not name and len(found) > 1 and self.exists:
            own = evaluation_name(self.recipe.evaluation.protocol, self.recipe.data.format, self.recipe.model.precision)
            name = own if self.path / EVALUATIONS / own in found else None
        if name:
            found = [self.path / EVALUATIONS / name]
        if len(found) > 1:
            raise UsageError(f"{self.path}: evaluated in several ways; choose one with --evaluation, among {names}")
        if not found or not (found[0] / SETTINGS).is_file():
            fix = f"not evaluated; moslora eval {shlex.quote(str(self.path))} does it"
            if names:
                fix = f"evaluated as {names}; choose one with --evaluation"
            raise UsageError(f"{self.path}: " + f"no evaluation {name}; " * bool(name) + fix)
        return found[0]


def _progress(folder: Path) -> tuple[int, int] | None:
    """The numbers of questions answered and asked in an evaluation's folder; ``None`` if it is finished, or if a file
    is damaged, which is told where the scores are read."""
    finished = (folder / RESULTS).is_file()
    try:
        tasks = json.loads((folder / SETTINGS).read_bytes())["tasks"]
        asked = {task: record["asked"] for task, record in tasks.items() if record.get("asked") is not None}
        if finished and not asked:  # of an earlier version
            return None
        file = folder / PREDICTIONS
        lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
        answered = Counter(map(_task_of, lines))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not asked:
        return len(lines), 0
    if finished and all(answered[task] >= number for task, number in asked.items()):
        return None
    return sum(min(answered[task], number) for task, number in asked.items()), sum(asked.values())


def _task_of(line: bytes) -> str:
    """The task of a line of predictions: most begin with the id, and the id with the task."""
    begin = b'{"id":"'
    if line.startswith(begin) and b'"task":' not in line:
        return line[len(begin) : line.find(b"/")].decode()
    row = json.loads(line)
    return str(row.get("task") or row["id"].partition("/")[0])


def evaluation_name(protocol: str, format: str, precision: str) -> str:
    """The name of an evaluation's folder."""
    return f"{protocol}-{format}-{precision}"


def base_of(evaluation: Path) -> Path:
    """The folder with the base's answers to the questions of an evaluation's folder."""
    return evaluation.with_name(BESIDE.sub("", evaluation.name) + "-base")


def is_run(path: Path) -> bool:
    return os.path.isfile(path / RUN) or os.path.isdir(path / EVALUATIONS)


def run_of(adapter: Path) -> Run:
    """The run that contains an adapter folder, as it is typed if that leads there; the folder itself if it was copied
    elsewhere. Of a link to an adapter it is the run of that adapter, not the one that the link lies in."""
    real = adapter.resolve()
    typed = [adapter.parent, adapter.parent.parent]
    for place in (real.parent, real.parent.parent):
        if (place / RUN).is_file():
            return Run(next((path for path in typed if path.resolve() == place), place))
    return Run(next((path for path in typed if (path / RUN).is_file()), adapter))


def locate_adapter(path: Path) -> Path:
    """The adapter folder at ``path``: itself, a run's ``adapter/``, or the newest checkpoint of a run, or of its folder
    of checkpoints."""
    if (path / MANIFEST).is_file():
        return path
    if is_checkpoints(path) and (checkpoints := Run(path / "..").checkpoints):
        return path / checkpoints[-1].name
    if adapters := Run(path).adapters:
        return adapters[0]
    quoted = shlex.quote(str(path))
    if not path.exists():
        raise UsageError(f"{path}: {_missing(path)}")
    if (path / "adapter_config.json").is_file():
        raise UsageError(f"{path}: a PEFT adapter, not a run; import it: moslora import {quoted}")
    if (path / "config.json").is_file():
        raise UsageError(f"{path}: a model without an adapter; choose a run or an adapter folder")
    if Run(path).exists:
        raise UsageError(f"{path}: this run has no adapter; {Run(path).how_to_finish}")
    raise UsageError(f"{path}: not a run or an adapter folder (no {MANIFEST}); moslora runs lists all")


def is_checkpoints(path: Path) -> bool:
    """Whether this is, or would be, a run's folder of checkpoints, however it is written."""
    return path.resolve().name == CHECKPOINTS


def checkpoint_name(adapter: Path) -> str:
    """The name of a checkpoint, such as ``step-20``, however its path is written; empty for another adapter."""
    place = adapter.resolve()
    return place.name if is_checkpoints(place.parent) else ""


def _missing(path: Path) -> str:
    """What is said of a run or an adapter that is not there."""
    if is_checkpoints(path.parent):
        steps = ", ".join(found.name for found in Run(path.parent / "..").checkpoints)
        return f"no such checkpoint; there {'are ' + steps if steps else 'is none'}"
    if close := near_folders(path):
        return f"no such run; did you mean {', '.join(close)}?"
    return "no such run; moslora runs lists all"


def unfinished(path: Path, adapter: Path, *, doing: str) -> str:
    """A note before ``doing`` something with ``adapter``, the newest checkpoint of an unfinished run; empty otherwise,
    and if ``path`` names that checkpoint itself."""
    run, name = run_of(adapter), checkpoint_name(adapter)
    if not name or run.finished or path.resolve() == adapter.resolve():
        return ""
    steps = run.facts.get("steps")
    planned = f" of {steps}" if steps else ""
    return f"{run.path} is unfinished: {doing} {name.replace('-', ' ')}{planned}"


def newest_run(*places: Path) -> Run:
    """The finished run in one of ``places`` that was written to last."""
    found = [run for place in places for path in place.glob("*/") if (run := Run(path)).finished]
    if not found:
        raise UsageError("no finished run in runs/ or here; give a run or a model, or train one: moslora train RECIPE")
    return max(found, key=lambda run: (run.result / MANIFEST).stat().st_mtime)


def table_of_runs(folder: Path) -> list[list[str]]:
    """Header first: every run at or below ``folder``, what it is, how far it came, and its scores."""
    rows = []
    for place, below, files in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        if RECIPE in files and MANIFEST not in files:
            path = Path(place)
            rows.append([str(path.relative_to(folder) if path != folder else folder), *_row(Run(path))])
            below[:] = [name for name in below if name not in (RESULT, CHECKPOINTS, EVALUATIONS, "merged", "peft")]
    if not rows:
        what = "no runs here" if folder.is_dir() else "no such folder"
        raise UsageError(f"{folder}: {what}; name the folder they are in, or train one: moslora train RECIPE")
    return [["run", "base", "adapter", "steps", "state", "scores"], *rows]


def _row(run: Run) -> list[str]:
    facts, total = run.facts, run.facts.get("steps")
    steps = f"{run.steps_done:,}/{total:,}" if total else "–"
    state = "finished" if run.finished else "unfinished" if total else "not begun"
    state = f"finished, no {RESULT}/" if run.without_result else state
    state = "imported" if "imported" in facts else state
    try:
        base, adapter = run.recipe.model.name, run.recipe.adapter.summary()
    except MosloraError:  # of another version
        base, adapter = "?", "unreadable recipe"
    begun = run.unfinished_evaluations
    cards = {name: card for name, card in facts.get("results", {}).items() if name not in begun}
    said = [*_scores(cards), *(_interrupted(name, *numbers) for name, numbers in begun.items())]
    return [Path(base).name, adapter, steps, state, "; ".join(said) or "–"]


def _interrupted(name: str, answered: int, asked: int) -> str:
    """Without an average, which would be over a part of the questions."""
    of = f"{answered:,} of {asked:,} questions" if asked else counted(answered, "question")
    return f"{name} unfinished ({of})"


def _scores(cards: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Macro averages; a remark where a run, its base and its checkpoints were not asked the same."""
    for _, group in groupby(sorted(cards), key=lambda name: BESIDE.sub("", name)):
        found = {name: cards[name] for name in group}
        for name, card in found.items():
            macro = [f"{100 * card['macro']:.1f} (n {card['questions']:,})"] if "macro" in card else []
            texts = [f"{task} {nats:.4f} nats per byte" for task, nats in card.get("nats_per_byte", {}).items()]
            yield f"{name} {', '.join(macro + texts)}"
        # Of each task the number of questions and the hash of its data; an old card has the number over all tasks.
        new = all("asked" in card for card in found.values())
        first, *others = [c["asked"] if new else (c.get("questions"), {*c["tasks"]}) for c in found.values()]
        if any(other != first for other in others):
            yield "of different questions: moslora compare takes those in common"
