"""Where runs and their adapters are."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

from moslora.errors import UsageError, some
from moslora.files import once_per_machine, write_json, writing
from moslora.runs.manifest import MANIFEST, RECIPE

RUN = "run.json"

RESULT = "adapter"
"""Folder in a finished run."""


def locate_adapter(path: Path) -> Path:
    """The adapter folder at ``path``: itself, a run's ``adapter/``, or the run's newest checkpoint."""
    if (path / MANIFEST).is_file():
        return path
    if (path / RESULT / MANIFEST).is_file():
        return path / RESULT
    if found := checkpoints(path):
        return found[-1]
    quoted = shlex.quote(str(path))
    if not path.exists():
        raise UsageError(f"{path}: no such run; {_known_runs(path)}")
    if (path / "adapter_config.json").is_file():
        raise UsageError(f"{path}: a PEFT adapter, not a run; import it: moslora import {quoted}")
    if (path / "config.json").is_file():
        raise UsageError(f"{path}: a model without an adapter; choose a run or an adapter folder")
    if (path / RECIPE).is_file():
        raise UsageError(f"{path}: this run has no checkpoint yet; resume it: moslora train {quoted} --resume")
    raise UsageError(f"{path}: not a run or an adapter folder (no {MANIFEST}); {_known_runs(path)}")


def unfinished(run: Path, adapter: Path, *, doing: str) -> str:
    """A note before ``doing`` something with the newest checkpoint of an unfinished ``run``; empty otherwise."""
    if adapter.parent != run / "checkpoints":
        return ""
    steps = run_facts(run).get("steps")
    return f"{run} is unfinished: {doing} {adapter.name.replace('-', ' ')}" + (f" of {steps}" if steps else "")


def run_facts(run: Path) -> dict[str, Any]:
    """The content of run.json; empty if the run was killed before it was written."""
    try:
        facts: dict[str, Any] = json.loads((run / RUN).read_bytes())
    except (OSError, ValueError):
        return {}
    return facts


def add_facts(run: Path, **facts: Any) -> None:
    """Adds to run.json, also while another process does. A mapping is added to the one that is there."""
    with writing(run / RUN), once_per_machine(run / RUN):
        known = run_facts(run)
        merged = {key: known.get(key, {}) | value if isinstance(value, dict) else value for key, value in facts.items()}
        write_json(run / RUN, known | merged)


def run_folder(adapter: Path) -> Path:
    """The run that contains an adapter folder; the folder itself if it was copied elsewhere."""
    for parent in (adapter.parent, adapter.parent.parent):
        if (parent / RUN).is_file():
            return parent
    return adapter


def newest_run(*places: Path) -> Path:
    """The finished run in one of ``places`` that was written to last."""
    found = [manifest.parent.parent for place in places for manifest in place.glob(f"*/{RESULT}/{MANIFEST}")]
    if not found:
        raise UsageError("no finished run in runs/ or here; give a run or a model, or train one: moslora train RECIPE")
    return max(found, key=lambda run: (run / RESULT / MANIFEST).stat().st_mtime)


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first; unfinished ones have other names."""
    found = [path for path in (run / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def _known_runs(path: Path) -> str:
    """The runs nearest to ``path``."""
    folder = next(place for place in (path, *path.parents) if place.is_dir())
    runs = sorted(str(found.parent) for place in (folder, folder / "runs") for found in place.glob(f"*/{RUN}"))
    return f"runs here: {some(runs, most=10)}" if runs else "there are no runs here"
