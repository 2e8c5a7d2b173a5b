"""The model that ``moslora eval`` scores: a run, an adapter folder, or any model. Loads no torch."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moslora.base.resolve import available_offline, refuse_mistyped_path
from moslora.choices import DType, EngineChoice, Strategy
from moslora.console import note_once
from moslora.errors import UsageError, some
from moslora.evaluation.request import Request
from moslora.files import near_folders
from moslora.recipe import ModelSection, Recipe, resolve_tasks
from moslora.runs import RUNS
from moslora.runs.adapter_folder import AdapterFolder, open_adapter
from moslora.runs.evaluation import refuse_other_scores
from moslora.runs.evaluation_defaults import read_evaluation_defaults
from moslora.runs.peft_files import CONFIG
from moslora.runs.run import (
    BESIDE,
    EVALUATIONS,
    Run,
    checkpoint_name,
    evaluation_name,
    is_checkpoints,
    is_run,
    locate_adapter,
    remark_on_unfinished,
)
from moslora.tasks import GROUP, Task


@dataclass(frozen=True)
class Target:
    """A model to score, not loaded yet.

    Attributes:
        model: how it is loaded.
        request: how it is asked: the settings of its recipe, or the defaults.
        recipe: its run's, or what a merged model's folder has of it.
        trained: the adapter folder of its run, also if the base alone is scored; ``None`` for a model without a run.
        base: the run's base is scored, without the adapter.
        strategy: what each of several processes holds.
        remark: on the adapter of an unfinished run; empty for others.
    """

    model: ModelSection
    request: Request
    recipe: Recipe | None = None
    trained: AdapterFolder | None = None
    base: bool = False
    strategy: Strategy = "ddp"
    remark: str = ""

    @property
    def run(self) -> Run | None:
        return self.trained.run if self.trained else None

    @property
    def adapter(self) -> AdapterFolder | None:
        """The adapter that is scored, if there is one."""
        return None if self.base else self.trained

    @property
    def own_tasks(self) -> Mapping[str, Task]:
        """Those that its recipe declares."""
        return self.recipe.own_tasks if self.recipe else {}

    def tasks_to_ask(self, typed: str | Sequence[str] | None) -> tuple[Task, ...]:
        """The ``typed`` tasks, by default those of its recipe, or the eight sets."""
        if typed is None and self.recipe is not None:
            return self.recipe.questions.tasks
        return resolve_tasks(GROUP if typed is None else typed, self.own_tasks)

    def task_of_rows(self, typed: str | None) -> Task:
        """The task that describes rows without answers: the ``typed`` one, by default the only one of its recipe.

        Raises:
            UsageError: there are none or several, or the adapter's gate does not know it.
        """
        named = self.own_tasks.values() if typed is None else resolve_tasks(typed, self.own_tasks)
        tasks = [task for task in named if not task.is_text]
        if len(tasks) != 1:
            among = some([task.name for task in tasks], most=8) or "boolq, or a YAML file that declares one"
            raise UsageError(f"--task: name the one task that describes the rows, such as {among}")
        if self.adapter:
            self.adapter.refuse_untrained(tasks[0].name)
        return tasks[0]

    def request_with(self, overrides: Mapping[str, Any]) -> Request:
        """Return its request with these fields."""
        request = self.request.with_overrides(overrides)
        if self.recipe is None and "protocol" not in overrides and "format" not in overrides:
            note_once(
                f"no recipe says how to ask this model, so it is asked by protocol {request.protocol};"
                " --protocol chooses another"
            )
        elif self.recipe is not None and request.format not in (self.request.format, overrides.get("format")):
            note_once(
                f"protocol {request.protocol} cannot read format {self.request.format}; using format {request.format},"
                " which this model was not trained for"
            )
        return request

    def is_in_run(self, folder: Path) -> bool:
        """Whether ``folder`` is one of its run's ``eval/``, however both are written."""
        return self.run is not None and folder.resolve().parent == (self.run.path / EVALUATIONS).resolve()

    def results_folder(self, request: Request, typed: Path | None, *, ending: str = "") -> Path:
        """Where its results are: the ``typed`` folder, which must not hold anything else, by default one of the run's,
        or one that is named by the fingerprint of a model, which is downloaded for it. ``ending``: of the name, for
        a server's results."""
        checkpoint = self.trained and checkpoint_name(self.trained.path)
        suffix = f"-{checkpoint}" if checkpoint else ""
        if self.base:
            suffix = "-base"
        suffix += ending
        name = evaluation_name(request.protocol, request.format, self.model.precision) + suffix
        if typed is not None:
            folder = typed
        elif self.run is not None:
            folder = self.run.path / EVALUATIONS / name
        else:
            from moslora.base.identity import fingerprint  # here, as it loads torch

            model = Path(os.path.expanduser(self.model.name)).name
            folder = RUNS / f"eval-{model}-{fingerprint(self.model.name)[:8]}" / name
        named = "".join(BESIDE.findall(folder.name))
        if self.is_in_run(folder) and named != suffix:
            raise UsageError(
                f"--out {folder}: in a run's eval/ this name stands for other weights; let it end in {suffix!r}, not in"
                f" {named!r}"
            )
        refuse_other_scores(folder)
        return folder


def open_target(
    name: str,
    *,
    base: bool = False,
    dtype: DType | None = None,
    engine: EngineChoice | None = None,
    trust_remote_code: bool = False,
    strategy: Strategy | None = None,
) -> Target:
    """The model that ``name`` names: a run, an adapter folder, a model folder, or a hub id, which is not looked up.

    Args:
        name: as typed.
        base: of a run, the base without the adapter.
        dtype: in place of the recipe's.
        engine: in place of the one that trained the run.
        trust_remote_code: the model's own Python code may run, which a run's recipe cannot allow.
        strategy: in place of the recipe's.
    """
    path = Path(os.path.expanduser(name))
    trained = None
    if names_run(name):
        trained = open_adapter(locate_adapter(path), trust_remote_code=trust_remote_code)
    recipe = trained.recipe if trained else read_evaluation_defaults(path)
    model = recipe.model if recipe else ModelSection(name=name)
    model = model.model_copy(update={"dtype": dtype or model.dtype, "engine": engine or (trained or model).engine})
    if trained is None:
        model = model.model_copy(update={"name": name, "trust_remote_code": trust_remote_code})
        return Target(model, Request.of(recipe), recipe, strategy=strategy or "ddp")
    if strategy == "fsdp" and model.quantization == "int8":
        raise UsageError("--strategy fsdp: int8 layers lose their scales when they are sharded; use ddp")
    remark = "" if base else remark_on_unfinished(path, trained.path, doing="scoring")
    strategy = strategy or trained.recipe.training.strategy
    return Target(model, Request.of(recipe), recipe, trained, base, strategy, remark)


def names_run(target: str) -> bool:
    """Whether ``target`` is a run or an adapter folder, or names one that is not there, rather than a model, or an
    adapter of PEFT."""
    path = Path(os.path.expanduser(target))
    if os.path.isdir(path):
        return not any((path / name).is_file() for name in ("config.json", CONFIG))
    if path.parent == RUNS or is_checkpoints(path.parent) or is_run(path):
        return True
    near = [str(RUNS / path)]
    if not os.path.isdir(RUNS / path):
        near = [folder for folder in near_folders(path) if is_run(Path(folder)) or Path(folder, CONFIG).is_file()]
    if near and available_offline(target) is None:
        raise UsageError(f"{target}: no such folder or model; did you mean {', '.join(near)}?")
    refuse_mistyped_path(target, said=target)
    return False
