"""A run on disk and the files in its folder, whose names are defined only here.

``recipe.yaml``    the resolved recipe    ``run.json``       the run's card: how it was made
``metrics.jsonl``  a line per record      ``checkpoints/``   the newest, to resume from, and the best
``adapter/``       the result             ``eval/NAME/``     an evaluation of it, or of its base
``strength.json``  the curve of its strength, by `moslora.strength`
``contents.bin``   hashes of the training rows, by which an evaluation finds leaks

Importing this module does not load torch.
"""

import json
import math
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from moslora.choices import BestBy
from moslora.errors import UsageError, did_you_mean
from moslora.files import near_folders, once_per_machine, write_json, write_text, writing
from moslora.recipe import Recipe, override_recipe
from moslora.runs.best import TRAINED_STEPS, Best, best_of
from moslora.runs.manifest import MANIFEST, RECIPE, written_recipe
from moslora.runs.strength import STRENGTH

RUN = "run.json"
METRICS = "metrics.jsonl"
RESULT = "adapter"
CHECKPOINTS = "checkpoints"
EVALUATIONS = "eval"

SETTINGS = "settings.json"
PREDICTIONS = "predictions.jsonl"
RESULTS = "results.json"
"""Files of an evaluation: its header, a line per question, and the numbers, written at the end."""

BESIDE = re.compile(r"(?:-base|-step-\d+|-at-.+)+$")
"""End of the name of an evaluation of a base, a checkpoint or a server, rather than of a run's result."""


def refuse_inside_adapter(out: Path) -> None:
    """Refuse an output folder inside an adapter, or among the checkpoints of a run."""
    for folder in out.resolve().parents:
        if (folder / MANIFEST).is_file() or (folder.name == CHECKPOINTS and Run(folder.parent).exists):
            raise UsageError(f"--out {out}: lies in {folder}, which belongs to a run; choose another folder")


@dataclass(frozen=True)
class Run:
    """Run in the folder ``path``, which need not exist yet."""

    path: Path

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return self.path.resolve().name

    @property
    def exists(self) -> bool:
        """Whether the folder has a recipe."""
        return (self.path / RECIPE).is_file()

    @property
    def result(self) -> Path:
        """Adapter folder of the finished run."""
        return self.path / RESULT

    @property
    def finished(self) -> bool:
        """Whether the run has its result."""
        return os.path.isfile(self.result / MANIFEST)  # Path.is_file raises for a folder without permission

    @property
    def begun(self) -> bool:
        """Whether its training has begun."""
        return "steps" in self.facts

    @property
    def made_elsewhere(self) -> bool:
        """Whether no training made the run: an import, or another run's adapter at a strength."""
        return not {"imported", STRENGTH}.isdisjoint(self.facts)

    @property
    def without_result(self) -> bool:
        """Whether training ended, but its result and checkpoints were removed."""
        return "seconds" in self.facts and not self.adapters

    @property
    def resume_command(self) -> str:
        """Command that resumes the run."""
        return f"moslora train {shlex.quote(str(self.path))} --resume"

    @property
    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first. Incomplete ones have other names."""
        complete = [path for path in (self.path / CHECKPOINTS).glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
        return sorted(complete, key=_step_of)

    def checkpoint(self, step: int) -> Path:
        """Path of the checkpoint after ``step`` updates, which need not exist."""
        return self.path / CHECKPOINTS / f"step-{step}"

    @property
    def contents(self) -> Path:
        """File with the `moslora.data.overlap.digest` of each training row, which shows leaks."""
        return self.path / "contents.bin"

    @property
    def curve(self) -> Path:
        """File of the strength curve, which `moslora.strength.curve` writes."""
        return self.path / "strength.json"

    @property
    def adapters(self) -> list[Path]:
        """Adapter folders: the result, then the checkpoints, newest first."""
        return [*([self.result] if self.finished else []), *self.checkpoints[::-1]]

    @property
    def facts(self) -> dict[str, Any]:
        """Content of ``run.json``; empty if the file is missing or damaged."""
        try:
            facts = json.loads((self.path / RUN).read_bytes())
        except (OSError, ValueError):
            return {}
        return facts if isinstance(facts, dict) else {}

    def add_facts(self, **facts: Any) -> None:
        """Add facts to ``run.json``, under a lock. A mapping is merged into an existing one."""
        card = self.path / RUN
        with writing(card), once_per_machine(card):
            content = self.facts
            for key, fact in facts.items():
                before = content.get(key)
                content[key] = before | fact if isinstance(fact, dict) and isinstance(before, dict) else fact
            write_json(card, content)

    def begin(self, recipe: Recipe, card: dict[str, Any]) -> None:
        """Write the recipe and a new ``run.json``, which keeps the experiment and the trackers' ids of an older one."""
        write_text(self.path / RECIPE, recipe.to_yaml())
        with once_per_machine(self.path / RUN):
            kept = {key: fact for key, fact in self.facts.items() if key == "experiment" or key.endswith("_id")}
            write_json(self.path / RUN, card | kept)

    @cached_property
    def recipe(self) -> Recipe:
        """Recipe of the training, with ``trust_remote_code`` off, whatever the file says."""
        return written_recipe(self.path / RECIPE, by=self.facts.get("versions", {}).get("moslora"))

    def recipe_to_resume(self, overrides: Sequence[str] = ()) -> Recipe:
        """Recipe to resume with. ``overrides`` have to repeat trust in remote code."""
        if self.made_elsewhere or (self.path / MANIFEST).is_file() or not self.exists:
            locate_adapter(self.path)  # has a clearer message if there is no adapter
            raise UsageError(
                f"{self.path}: has no {RECIPE} of a training, so it cannot be resumed; continue its adapter in a new"
                f" run: adapter.continue_from={shlex.quote(str(self.path))}"
            )
        if not overrides:
            return self.recipe
        return override_recipe(self.recipe, overrides, path=self.path / RECIPE)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Rows of ``metrics.jsonl``, each with a step; none without the file."""
        path = self.path / METRICS
        if not path.exists():
            return []
        rows = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
                _ = row["step"] + 0
            except (ValueError, KeyError, TypeError):  # such as the line being written when the run was killed
                continue
            rows.append(row)
        return rows

    @property
    def steps_done(self) -> int:
        """Number of updates in the newest saved adapter."""
        if self.finished or self.without_result:
            facts = self.facts
            return int(facts.get(TRAINED_STEPS, facts.get("steps", 0)))
        return max(map(_step_of, self.checkpoints), default=0)

    @property
    def best(self) -> Best | None:
        """Best validation, if it chose the result of the run; otherwise ``None``."""
        best = best_of(self.facts)
        if best is None or best.step is None or self.recipe.training.result != "best":
            return None
        return best

    @property
    def validation_loss(self) -> float | None:
        """Validation loss of the result, or else the last one; infinite if it was not finite, ``None`` without any."""
        best = self.best
        if best is not None and best.by == "loss" and not self.made_elsewhere:
            return best.value
        losses = {row["step"]: row["validation_loss"] for row in self.metrics if "validation_loss" in row}
        if not losses:
            return None
        loss = losses.get(best.step if best else max(losses))
        return math.inf if loss is None else float(loss)  # null in JSON if it was not finite

    def validation_at_start(self, by: BestBy) -> float | None:
        """Validation loss or accuracy, as ``by`` says, before the first step; ``None`` if missing or not finite."""
        return next((row.get(f"validation_{by}") for row in self.metrics if row["step"] == 0), None)

    @property
    def evaluations(self) -> list[Path]:
        """Folders of all evaluations of the run, its base and its checkpoints, sorted by name."""
        return sorted(file.parent for file in self.path.glob(f"{EVALUATIONS}/*/{SETTINGS}"))

    def evaluation_folder(self, name: str | None = None) -> Path:
        """Folder of the evaluation ``name``; without a name, of the only one or of the one that the recipe names."""
        every = [folder.name for folder in self.evaluations]
        names = [each for each in every if not BESIDE.search(each)]
        if name:
            names = [each for each in every if each == name]
        elif len(names) > 1 and self.exists:
            recipe = self.recipe
            named = evaluation_name(recipe.evaluation.protocol, recipe.data.format, recipe.model.precision)
            with_base = [each for each in names if f"{each}-base" in every]
            if "imported" in self.facts and len(with_base) == 1:  # its recipe does not say how it was evaluated
                names = with_base
            elif named in names:
                names = [named]
        if len(names) == 1:
            return self.path / EVALUATIONS / names[0]
        fault = f"no evaluation {name}" if name else "not evaluated, or in several ways"
        fix = f"moslora eval {shlex.quote(str(self.path))} makes one"
        if every:
            fix = f"choose one with --evaluation, among {', '.join(every)}"
        raise UsageError(f"{self.path}: {fault}; {fix}")


def _step_of(checkpoint: Path) -> int:
    """Number of updates of a checkpoint."""
    return int(checkpoint.name.removeprefix("step-"))


def evaluation_name(protocol: str, format: str, precision: str) -> str:
    """Name of an evaluation's folder from its settings, without an ending such as ``-base``."""
    return f"{protocol}-{format}-{precision}"


def result_of(evaluation: Path) -> Path:
    """Folder of the same evaluation of the run's result; ``evaluation`` may be of the result, its base or a
    checkpoint."""
    return evaluation.with_name(BESIDE.sub("", evaluation.name))


def base_of(evaluation: Path) -> Path:
    """Folder with the base's answers to the questions of an evaluation."""
    return evaluation.with_name(result_of(evaluation).name + "-base")


def is_run(path: Path) -> bool:
    """Whether ``path`` counts as a run's folder: it has a ``run.json`` or a folder ``eval/``."""
    return os.path.isfile(path / RUN) or os.path.isdir(path / EVALUATIONS)


def run_of(adapter: Path) -> Run:
    """Run that contains an adapter folder, with its path as given where possible.

    It is the folder itself if that was copied elsewhere. For a link it is the run of the link's target.
    """
    real = adapter.resolve()
    given = (adapter.parent, adapter.parent.parent)
    own = [path for path in given if path.resolve() in real.parents]
    for place in (*own, real.parent, real.parent.parent, *given):
        if (place / RUN).is_file():
            return Run(place)
    return Run(adapter)


def locate_adapter(path: Path) -> Path:
    """Adapter folder at ``path``: the path itself, a run's ``adapter/``, or the newest checkpoint of a run or of its
    ``checkpoints/``."""
    if (path / MANIFEST).is_file():
        return path
    adapters = Run(path).adapters
    if is_checkpoints(path):
        adapters = [path / checkpoint.name for checkpoint in Run(path / "..").checkpoints[::-1]]
    if adapters:
        return adapters[0]
    fault = f"not a run or an adapter folder (no {MANIFEST}); moslora runs lists all"
    if not path.exists():
        fault = f"no such run; {did_you_mean(near_folders(path), otherwise='moslora runs lists all')}"
    elif (path / "adapter_config.json").is_file():
        fault = f"a PEFT adapter, not a run; import it: moslora import {shlex.quote(str(path))}"
    elif Run(path).exists:
        fault = f"this run has no adapter; resume it: {Run(path).resume_command}"
    raise UsageError(f"{path}: {fault}")


def is_checkpoints(path: Path) -> bool:
    """Whether ``path`` has the name of a run's folder of checkpoints, also where it is written as ``.``."""
    return path.resolve().name == CHECKPOINTS


def checkpoint_name(adapter: Path) -> str:
    """Name of a checkpoint, such as ``step-20``; empty for another adapter folder."""
    place = adapter.resolve()
    return place.name if is_checkpoints(place.parent) else ""


def remark_on_unfinished(path: Path, adapter: Path, *, doing: str) -> str:
    """Remark that ``adapter`` is the newest checkpoint of an unfinished run; empty otherwise.

    It is also empty if ``path`` names the checkpoint itself. ``doing`` is the verb, such as ``merging``.
    """
    run = run_of(adapter)
    name = checkpoint_name(adapter)
    if not name or run.finished or path.resolve() == adapter.resolve():
        return ""
    return f"{run.path} is unfinished: {doing} {name.replace('-', ' ')} of {run.facts.get('steps', '?')}"


def newest_run(*places: Path) -> Run:
    """Finished run with the newest result among the folders directly in ``places``."""
    every = [Run(path) for place in places for path in place.glob("*/")]
    finished = [run for run in every if run.finished]
    if not finished:
        raise UsageError("no finished run in runs/ or here; give a run or a model, or train one: moslora train RECIPE")
    return max(finished, key=lambda run: (run.result / MANIFEST).stat().st_mtime)
