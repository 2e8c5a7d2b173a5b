"""The last line that a command prints: the command to run next."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moslora.console import say
from moslora.errors import UsageError

if TYPE_CHECKING:
    from moslora.runs.run import Run


def say_next(*words: str) -> None:
    """Print ``moslora`` and these words as the next command.

    Print nothing without words, or if this command is part of another one, such as the quickstart.
    """
    from moslora.processes.launch import PART

    if words and PART not in os.environ:
        say(f"next: {shlex.join(['moslora', *words])}")


def after_training(run: "Run") -> Sequence[str]:
    """Choose the command after the training of ``run``: its evaluation, or ``ask`` if its recipe names no questions.

    Print a remark if the rows that it was trained on cannot be scored.
    """
    from moslora.runs.bare_rows import asks_nothing, remark_on_bare_rows, trained_tasks

    remark = remark_on_bare_rows(run)
    if remark:
        say(remark)
    if asks_nothing(run.recipe, trained_tasks(run)):
        return ("ask", str(run.path))
    return ("eval", str(run.path))


def say_strength(run: "Run") -> None:
    """Print the command that recommends the strength of ``run``, if it has validation rows to measure on."""
    from moslora.processes.launch import PART

    if run.validation_loss is not None and run.recipe.adapter.linear_weights and PART not in os.environ:
        command = shlex.join(["moslora", "strength", str(run.path)])
        say(f"at a lower strength the run may forget less: {command}")


def after_scoring(folder: Path, run: "Run", *, words: Sequence[str]) -> Sequence[str]:
    """Choose the command to suggest after ``words``, which evaluated ``run`` into ``folder``.

    It evaluates the base if the base has no such evaluation, or the run if the run has none. Otherwise it compares
    both. After the evaluation of a checkpoint nothing is suggested.
    """
    from moslora.runs.run import SETTINGS, base_of, result_of

    own = result_of(folder)
    base = base_of(folder)
    if folder not in (own, base):
        return ()
    if not (base / SETTINGS).is_file():
        return (*words, "--base")
    if not (own / SETTINGS).is_file():
        return [word for word in words if word != "--base"]
    compare = ["compare", str(run.path)]
    try:
        is_default = run.evaluation_folder() == own
    except UsageError:  # there are several
        is_default = False
    return compare if is_default else [*compare, "--evaluation", own.name]
