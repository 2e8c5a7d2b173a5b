"""A run on disk: where it lies, and all that is in its folder. Nobody else knows the names of these files.

``recipe.yaml``    the resolved recipe    ``run.json``       the run's card: how it was made
``metrics.jsonl``  a line per record      ``checkpoints/``   the newest, to resume from, and the best
``adapter/``       the result             ``eval/NAME/``     an evaluation of it, or of its base
``strength.json``  the curve of its strength, by `moslora.strength`
``contents.bin``   hashes of the training rows, by which an evaluation finds leaks

Importing this does not load torch.
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
"""In the folder of an evaluation: its head, a line per question, and the numbers, which are there once it is done."""

BESIDE = re.compile(r"(?:-base|-step-\d+|-at-.+)+$")
"""Ends the name of an evaluation that is not of the run's result, but of its base, of a checkpoint, or of a server."""


def refuse_inside_adapter(out: Path) -> None:
    """Refuse an output folder inside an adapter, or among the checkpoints of a run."""
    for folder in out.resolve().parents:
        if (folder / MANIFEST).is_file() or (folder.name == CHECKPOINTS and Run(folder.parent).exists):
            raise UsageError(f"--out {out}: lies in {folder}, which belongs to a run; choose another folder")


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
    def made_elsewhere(self) -> bool:
        """Whether it is no training's own: imported, or another run's adapter at a strength."""
        return not {"imported", STRENGTH}.isdisjoint(self.facts)

    @property
    def without_result(self) -> bool:
        """Whether training ended, and its result and checkpoints were removed since."""
        return "seconds" in self.facts and not self.adapters

    @property
    def resume_command(self) -> str:
        return f"moslora train {shlex.quote(str(self.path))} --resume"

    @property
    def checkpoints(self) -> list[Path]:
        """The complete checkpoints, oldest first; unfinished ones have other names."""
        complete = [path for path in (self.path / CHECKPOINTS).glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
        return sorted(complete, key=_step_of)

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint after ``step`` updates is, or would be."""
        return self.path / CHECKPOINTS / f"step-{step}"

    @property
    def contents(self) -> Path:
        """`moslora.data.overlap.digest` of each training row, by which an evaluation finds leaks."""
        return self.path / "contents.bin"

    @property
    def curve(self) -> Path:
        """The curve of its strength, as `moslora.strength.curve` writes it."""
        return self.path / "strength.json"

    @property
    def adapters(self) -> list[Path]:
        """The adapter folders: the result, then the checkpoints, newest first."""
        return [*([self.result] if self.finished else []), *self.checkpoints[::-1]]

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
                then = known.get(key)
                known[key] = then | fact if isinstance(fact, dict) and isinstance(then, dict) else fact
            write_json(card, known)

    def begin(self, recipe: Recipe, card: dict[str, Any]) -> None:
        """Makes the folder with the recipe and a new ``run.json``; of an older one stays what the run belongs to."""
        write_text(self.path / RECIPE, recipe.to_yaml())
        with once_per_machine(self.path / RUN):
            known = self.facts
            kept = {key: fact for key, fact in known.items() if key == "experiment" or key.endswith("_id")}
            write_json(self.path / RUN, card | kept)

    @cached_property
    def recipe(self) -> Recipe:
        """How it was trained; it grants no trust in remote code."""
        return written_recipe(self.path / RECIPE, by=self.facts.get("versions", {}).get("moslora"))

    def recipe_to_resume(self, overrides: Sequence[str] = ()) -> Recipe:
        """The recipe to train on with; ``overrides`` have to repeat that remote code is trusted."""
        if self.made_elsewhere or (self.path / MANIFEST).is_file() or not self.exists:
            locate_adapter(self.path)  # a clearer message if there is no adapter either
            raise UsageError(
                f"{self.path}: no run of a training with its {RECIPE}, so it cannot be resumed; continue it in a new"
                f" run: adapter.continue_from={shlex.quote(str(self.path))}"
            )
        if not overrides:
            return self.recipe
        return override_recipe(self.recipe, overrides, path=self.path / RECIPE)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of ``metrics.jsonl``, each with a step; none without the file."""
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
        """Number of updates that are saved."""
        if self.finished or self.without_result:
            facts = self.facts
            return int(facts.get(TRAINED_STEPS, facts.get("steps", 0)))
        return max(map(_step_of, self.checkpoints), default=0)

    @property
    def best(self) -> Best | None:
        """What chose its result, if it is finished and validations did."""
        best = best_of(self.facts)
        if best is None or best.step is None or self.recipe.training.result != "best":
            return None
        return best

    @property
    def validation_loss(self) -> float | None:
        """That of its result, or else the last one so far; infinite if it was not finite, ``None`` without any."""
        best = self.best
        if best is not None and best.by == "loss" and not self.made_elsewhere:
            return best.value
        losses = {row["step"]: row["validation_loss"] for row in self.metrics if "validation_loss" in row}
        if not losses:
            return None
        loss = losses.get(best.step if best else max(losses))
        return math.inf if loss is None else float(loss)  # as JSON has it where it was not finite

    def validation_at_start(self, by: BestBy) -> float | None:
        """That before the first step; ``None`` without one, or if it was not finite."""
        return next((row.get(f"validation_{by}") for row in self.metrics if row["step"] == 0), None)

    @property
    def evaluations(self) -> list[Path]:
        """The folders of all its evaluations, also those of its base and its checkpoints, by name."""
        return sorted(file.parent for file in self.path.glob(f"{EVALUATIONS}/*/{SETTINGS}"))

    def evaluation_folder(self, name: str | None = None) -> Path:
        """The folder of the evaluation called ``name``, or of the only one, or of the one that the recipe names."""
        every = [folder.name for folder in self.evaluations]
        names = [each for each in every if not BESIDE.search(each)]
        if name:
            names = [each for each in every if each == name]
        elif len(names) > 1 and self.exists:
            recipe = self.recipe
            named = evaluation_name(recipe.evaluation.protocol, recipe.data.format, recipe.model.precision)
            with_base = [each for each in names if f"{each}-base" in every]
            if "imported" in self.facts and len(with_base) == 1:  # its recipe does not know how it is asked
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
    return int(checkpoint.name.removeprefix("step-"))


def evaluation_name(protocol: str, format: str, precision: str) -> str:
    """The name of an evaluation's folder."""
    return f"{protocol}-{format}-{precision}"


def result_of(evaluation: Path) -> Path:
    """The folder with the answers of the run's result, beside an evaluation's folder of its base or of a checkpoint."""
    return evaluation.with_name(BESIDE.sub("", evaluation.name))


def base_of(evaluation: Path) -> Path:
    """The folder with the base's answers to the questions of an evaluation's folder."""
    return evaluation.with_name(result_of(evaluation).name + "-base")


def is_run(path: Path) -> bool:
    return os.path.isfile(path / RUN) or os.path.isdir(path / EVALUATIONS)


def run_of(adapter: Path) -> Run:
    """The run that contains an adapter folder, as it is typed if that leads there; the folder itself if it was copied
    elsewhere. Of a link to an adapter it is the run of that adapter, not the one that the link lies in."""
    real = adapter.resolve()
    typed = (adapter.parent, adapter.parent.parent)
    own = [path for path in typed if path.resolve() in real.parents]
    for place in (*own, real.parent, real.parent.parent, *typed):
        if (place / RUN).is_file():
            return Run(place)
    return Run(adapter)


def locate_adapter(path: Path) -> Path:
    """The adapter folder at ``path``: itself, a run's ``adapter/``, or the newest checkpoint of a run, or of its folder
    of checkpoints."""
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
    """Whether this is, or would be, a run's folder of checkpoints, however it is written."""
    return path.resolve().name == CHECKPOINTS


def checkpoint_name(adapter: Path) -> str:
    """The name of a checkpoint, such as ``step-20``, however its path is written; empty for another adapter."""
    place = adapter.resolve()
    return place.name if is_checkpoints(place.parent) else ""


def remark_on_unfinished(path: Path, adapter: Path, *, doing: str) -> str:
    """A note before ``doing`` something with ``adapter``, the newest checkpoint of an unfinished run; empty otherwise,
    and if ``path`` names that checkpoint itself."""
    run = run_of(adapter)
    name = checkpoint_name(adapter)
    if not name or run.finished or path.resolve() == adapter.resolve():
        return ""
    return f"{run.path} is unfinished: {doing} {name.replace('-', ' ')} of {run.facts.get('steps', '?')}"


def newest_run(*places: Path) -> Run:
    """The finished run in one of ``places`` that was written to last."""
    every = [Run(path) for place in places for path in place.glob("*/")]
    finished = [run for run in every if run.finished]
    if not finished:
        raise UsageError("no finished run in runs/ or here; give a run or a model, or train one: moslora train RECIPE")
    return max(finished, key=lambda run: (run.result / MANIFEST).stat().st_mtime)
