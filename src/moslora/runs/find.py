"""Where runs and their adapters are."""

import json
import re
from pathlib import Path
from typing import Any

from moslora.errors import UsageError, some
from moslora.runs.manifest import MANIFEST, RECIPE

RUN = "run.json"

RESULT = "adapter"
"""Folder in a finished run."""

KNOWN = 10
"""Runs that a message names."""


def locate_adapter(path: Path) -> Path:
    """The adapter folder that ``path`` means: itself, a run's ``adapter/``, or the run's newest checkpoint.

    Raises:
        UsageError: there is none.
    """
    if (path / MANIFEST).is_file():
        return path
    if (path / RESULT / MANIFEST).is_file():
        return path / RESULT
    if found := checkpoints(path):
        return found[-1]
    if not path.exists():
        raise UsageError(f"{path}: no such run; {_known_runs(path)}")
    if (path / "adapter_config.json").is_file():
        raise UsageError(f"{path}: a PEFT adapter, not a run of moslora; make it one: moslora import {path}")
    if (path / "config.json").is_file():
        raise UsageError(f"{path}: a model without an adapter; name a run or an adapter folder")
    if (path / RECIPE).is_file():
        raise UsageError(f"{path}: this run has no checkpoint yet; resume it: moslora train {path} --resume")
    raise UsageError(f"{path}: not a run or an adapter folder (no {MANIFEST}); {_known_runs(path)}")


def unfinished(run: Path, adapter: Path, *, doing: str) -> str:
    """What to say before ``doing`` where ``adapter`` is only the newest checkpoint of ``run``, for want of a result."""
    if adapter.parent != run / "checkpoints":
        return ""
    steps = run_facts(run).get("steps")
    return f"{run} is unfinished: {doing} {adapter.name.replace('-', ' ')}" + (f" of {steps}" if steps else "")


def run_facts(run: Path) -> dict[str, Any]:
    """What run.json says; nothing where the run was killed before it was written."""
    try:
        facts: dict[str, Any] = json.loads((run / RUN).read_bytes())
    except (OSError, ValueError):
        return {}
    return facts


def run_folder(adapter: Path) -> Path:
    """The run that an adapter folder lies in; the folder itself if it was copied elsewhere."""
    for parent in (adapter.parent, adapter.parent.parent):
        if (parent / RUN).is_file():
            return parent
    return adapter


def newest_run(*places: Path) -> Path:
    """The finished run directly in one of ``places`` that was written to last.

    Raises:
        UsageError: there is none.
    """
    found = [manifest.parent.parent for place in places for manifest in place.glob(f"*/{RESULT}/{MANIFEST}")]
    if not found:
        raise UsageError("no finished run in runs/ or here; name a run or a model, or train one: moslora train RECIPE")
    return max(found, key=lambda run: (run / RESULT / MANIFEST).stat().st_mtime)


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first. Unfinished ones have other names and do not count."""
    found = [path for path in (run / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def _known_runs(path: Path) -> str:
    """The runs nearest to ``path``."""
    folder = next(place for place in (path, *path.parents) if place.is_dir())
    runs = sorted(str(found.parent) for place in (folder, folder / "runs") for found in place.glob(f"*/{RUN}"))
    return f"runs here: {some(runs, most=KNOWN)}" if runs else "there are no runs here"
