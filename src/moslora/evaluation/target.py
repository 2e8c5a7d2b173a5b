"""A target is the model that a command scores: a run, an adapter folder, or any model, opened but not loaded. Importing
this loads no torch."""

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
    """Model to score, not loaded yet.

    Attributes:
        model: settings with which the base is loaded.
        request: settings of its evaluation, from the recipe or by default.
        recipe: recipe of the run; for a merged model, the part of it in ``moslora.yaml``.
        trained: adapter folder of the run, also if the base alone is scored; ``None`` for a model without a run.
        base: whether the run's base is scored, without the adapter.
        strategy: how several processes compute, ``ddp`` or ``fsdp`` (`moslora.choices.Strategy`).
        remark: remark on the adapter of an unfinished run; empty for others.
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
        """Run of the adapter folder."""
        return self.trained.run if self.trained else None

    @property
    def adapter(self) -> AdapterFolder | None:
        """Adapter folder that is scored, if there is one."""
        return None if self.base else self.trained

    @property
    def own_tasks(self) -> Mapping[str, Task]:
        """Tasks that the recipe declares."""
        return self.recipe.own_tasks if self.recipe else {}

    def tasks_to_ask(self, names: str | Sequence[str] | None) -> tuple[Task, ...]:
        """Return the named tasks; without names those of the recipe, or without a recipe the eight commonsense sets."""
        if names is None and self.recipe is not None:
            return self.recipe.questions.tasks
        return resolve_tasks(GROUP if names is None else names, self.own_tasks)

    def task_of_rows(self, name: str | None) -> Task:
        """Return the task that describes rows without answers: the named one, or the recipe's only one.

        Raises:
            UsageError: there are none or several such tasks, or the adapter's gate was not trained on the task.
        """
        candidates = self.own_tasks.values() if name is None else resolve_tasks(name, self.own_tasks)
        tasks = [task for task in candidates if not task.is_text]
        if len(tasks) != 1:
            among = some([task.name for task in tasks], most=8) or "boolq, or a YAML file that declares one"
            raise UsageError(f"--task: name the one task that describes the rows, such as {among}")
        if self.adapter:
            self.adapter.refuse_untrained(tasks[0].name)
        return tasks[0]

    def request_with(self, overrides: Mapping[str, Any]) -> Request:
        """Return the settings of the evaluation with these fields changed; print a note if the model was not trained
        for the way in which it is asked, as far as is known."""
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
        """Whether ``folder`` is in ``eval/`` of the run, however both paths are written."""
        return self.run is not None and folder.resolve().parent == (self.run.path / EVALUATIONS).resolve()

    def results_folder(self, request: Request, out: Path | None, *, ending: str = "") -> Path:
        """Return the folder of the results.

        Args:
            request: settings of the evaluation.
            out: the folder, if the user names one. Otherwise it is in the run; for a model without a run, in a folder
                with the fingerprint of the model, which is downloaded for it.
            ending: ending of the folder's name, for a server's results.

        Raises:
            UsageError: ``out`` has files but no evaluation, or is in the run and does not end as the usual name does
                (``-base``, ``-step-N``, ``-at-SERVER``, or none of these).
        """
        checkpoint = self.trained and checkpoint_name(self.trained.path)
        suffix = f"-{checkpoint}" if checkpoint else ""
        if self.base:
            suffix = "-base"
        suffix += ending
        name = evaluation_name(request.protocol, request.format, self.model.precision) + suffix
        if out is not None:
            folder = out
        elif self.run is not None:
            folder = self.run.path / EVALUATIONS / name
        else:
            from moslora.base.identity import fingerprint  # loads torch

            model = Path(os.path.expanduser(self.model.name)).name
            folder = RUNS / f"eval-{model}-{fingerprint(self.model.name)[:8]}" / name
        named = "".join(BESIDE.findall(folder.name))
        if self.is_in_run(folder) and named != suffix:
            fix = f"end it in {suffix}" if suffix else "remove that ending"
            raise UsageError(
                f"--out {folder}: in a run, names that end in {named} are for the scores of other weights; {fix}"
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
    """Open a run, an adapter folder, a model folder, or a model of the hub, without loading or downloading it.

    Args:
        name: the user's path or hub id.
        base: score a run's base without the adapter.
        dtype: precision in place of the recipe's.
        engine: engine in place of the one that trained the run.
        trust_remote_code: allow the model's own Python code; a run's recipe cannot allow it.
        strategy: strategy in place of the recipe's.
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
    if strategy == "fsdp" and not model.can_be_sharded:
        raise UsageError("--strategy fsdp: int8 layers lose their scales when they are sharded; use ddp")
    remark = "" if base else remark_on_unfinished(path, trained.path, doing="scoring")
    strategy = strategy or trained.recipe.training.strategy
    return Target(model, Request.of(recipe), recipe, trained, base, strategy, remark)


def names_run(target: str) -> bool:
    """Whether ``target`` is, or looks like, a run or an adapter folder; otherwise it is a model or an adapter of PEFT.

    Raises:
        UsageError: there is no such folder or model.
    """
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
