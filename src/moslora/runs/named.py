"""Whether a name on the command line is a run's or a model's. Importing this does not load torch."""

import os
from pathlib import Path

from moslora.base.resolve import is_mistyped_path, no_such_folder
from moslora.errors import UsageError
from moslora.runs import RUNS
from moslora.runs.run import is_checkpoints, is_run


def names_run(target: str) -> bool:
    """Whether ``target`` is a run or an adapter folder, or names one that is not there, rather than a model."""
    path = Path(os.path.expanduser(target))
    if os.path.isdir(path):
        return not (path / "config.json").is_file()
    if path.parent == RUNS or is_checkpoints(path.parent) or is_run(path):
        return True
    if os.path.isdir(RUNS / path):
        raise UsageError(f"{target}: no such folder or model; did you mean {RUNS / path}?")
    if is_mistyped_path(target):
        raise UsageError(f"{target}: {no_such_folder(target)}")
    return False
