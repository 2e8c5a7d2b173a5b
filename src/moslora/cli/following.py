"""The last line that a command prints: the command that comes next."""

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
    """Prints the command that comes next, ``moslora`` and these words; nothing without words, or within a command."""
    from moslora.processes.launch import PART

    if words and PART not in os.environ:
        say(f"next: {shlex.join(['moslora', *words])}")


def after_training(run: "Run") -> Sequence[str]:
    """The command after the training of ``run``: its evaluation, or a question of the user's, if its recipe names no
    questions. Says so where nothing scores the rows that it was trained on."""
    from moslora.runs.bare_rows import asks_nothing, remark_on_bare_rows, trained_tasks

    remark = remark_on_bare_rows(run)
    if remark:
        say(remark)
    if asks_nothing(run.recipe, trained_tasks(run)):
        return ("ask", str(run.path))
    return ("eval", str(run.path))


def say_strength(run: "Run") -> None:
    """Prints the command that recommends the strength of ``run``, if it has validation rows to measure on."""
    from moslora.processes.launch import PART

    if run.validation_loss is not None and run.recipe.adapter.linear_weights and PART not in os.environ:
        command = shlex.join(["moslora", "strength", str(run.path)])
        say(f"applied less strongly, it may forget less: {command}")


def after_scoring(folder: Path, run: "Run", *, words: Sequence[str]) -> Sequence[str]:
    """The command after ``words``, which evaluated ``run`` in ``folder``: the comparison with its base, or first the
    same evaluation of the base or of the run, if that is missing. Empty after the evaluation of a checkpoint."""
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
        found_unnamed = run.evaluation_folder() == own
    except UsageError:  # there are several
        found_unnamed = False
    if not found_unnamed:
        compare += ["--evaluation", own.name]
    return compare
