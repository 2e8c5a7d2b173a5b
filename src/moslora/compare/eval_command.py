"""The command that would make an evaluation that is missing."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

from moslora.compare.runs import ComparedRun
from moslora.runs.manifest import RECIPE
from moslora.runs.run import CHECKPOINTS, Run, base_of, is_run
from moslora.tasks import BUILT_IN


def eval_command(run: ComparedRun, asked: ComparedRun) -> str:
    """The command that asks the model of ``run`` the questions of ``asked``, in the way in which it was asked."""
    how = " ".join(_options(run))
    tasks = ",".join(_tasks(run, asked))
    limit = max(len(answers.ids) for answers in asked.tasks.values())
    return f"moslora eval {_target(run)} {how} --tasks {tasks} --limit {limit}"


def base_command(run: ComparedRun) -> str:
    """The command that asks the base of ``run`` its questions, in the same way."""
    base = base_of(run.evaluation.folder)
    return eval_command(replace(run, path=base, recipe=None), run)


def _run_at(path: Path) -> Run:
    """The run at ``path``, or that around the folder of an evaluation."""
    if is_run(path):
        return Run(path)
    return Run(path.parent.parent)


def _target(run: ComparedRun) -> str:
    """The model of ``run``, as it is named on the command line."""
    own = _run_at(run.path)
    if not own.exists:
        return shlex.quote(str(run.settings.metadata.get("base")))
    checkpoint = re.search(r"-(step-\d+)$", run.path.name)
    place = own.path
    if checkpoint:
        place = own.path / CHECKPOINTS / checkpoint[1]
    target = shlex.quote(str(place))
    if not run.recipe:
        target += " --base"
    return target


def _tasks(run: ComparedRun, asked: ComparedRun) -> list[str]:
    """The tasks of ``asked``. One that only its recipe declares is named by that recipe."""
    known = set(BUILT_IN)
    own = _run_at(run.path)
    if own.exists:
        known |= own.recipe.tasks.keys()
    recipe = shlex.quote(str(_run_at(asked.path).path / RECIPE))
    tasks: dict[str, None] = {}
    for task in asked.tasks:
        name = task if task in known else recipe
        tasks[name] = None
    return list(tasks)


def _options(run: ComparedRun) -> list[str]:
    """How ``run`` was asked. Another limit in tokens would be refused in the same folder."""
    values = {key: getattr(run.settings, key) for key in ("protocol", "format", "dtype", "beams", "max_length")}
    values["source"] = run.settings.metadata.get("source")
    options = []
    for key, value in values.items():
        if value is not None:
            options.append(f"--{key.replace('_', '-')} {shlex.quote(str(value))}")
    return options
