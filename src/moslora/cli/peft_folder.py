"""Folders of PEFT in the place of runs: their adapters are imported at first use. Also finds the adapter to convert."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moslora.console import note, say
from moslora.errors import UsageError
from moslora.files import in_use, once_per_machine, refuse_used, sha256
from moslora.runs import RUNS

if TYPE_CHECKING:
    from moslora.evaluation.target import Target


def as_run(path: Path, *, evaluated: bool = False, trust_remote_code: bool = False) -> Path:
    """Return the run of PEFT's adapter in ``path``, or ``path`` itself if it is no folder of PEFT.

    At its first use the adapter is imported, as by ``moslora import``, into runs/NAME, or beside it if that is in use.

    Args:
        evaluated: refuse an adapter that is not imported yet, as it has no answers.
        trust_remote_code: the base's own Python code may run.
    """
    from moslora.runs.peft_files import CONFIG, adapter_files
    from moslora.runs.run import Run

    if not os.path.isfile(path / CONFIG):
        return path
    hashes = {file.name: sha256(file) for file in adapter_files(path)}
    place = RUNS / path.resolve().name
    own = place.with_name("-".join([place.name, *(digest[:8] for digest in hashes.values())]))
    with once_per_machine(place):
        for run in (Run(place), Run(own)):
            if run.facts.get("imported", {}).get("sha256") == hashes:
                return run.path
        if evaluated:
            raise UsageError(f"{path}: not evaluated; moslora eval {shlex.quote(str(path))} does it")
        if in_use(place):
            place = own
        from moslora.convert.importing import import_adapter

        say(f"importing {path} into {place} (once) …")
        say(import_adapter(path, out=place, trust_remote_code=trust_remote_code))
    return place


def imported(opened: "Target", name: str, **how: Any) -> "Target":
    """Import PEFT's adapter in ``name`` and open its run; return ``opened`` itself if ``name`` is no folder of PEFT.

    Args:
        opened: ``name`` as it was opened, for checks before the import.
        how: the options of `open_target`.
    """
    from moslora.evaluation.target import open_target

    path = Path(os.path.expanduser(name))
    run = as_run(path, trust_remote_code=how["trust_remote_code"])
    return opened if run == path else open_target(str(run), **how)


def adapter_to_convert(
    run: Path, out: Path | None, task: str | None, *, name: str, doing: str, trust: bool
) -> tuple[Path, Path]:
    """Find the adapter folder of ``run``, and the output folder, which must be empty; note an unfinished run."""
    from moslora.runs.run import run_of

    if out is not None:
        refuse_used(out)
    adapter = adapter_at(run, doing=doing, trust=trust)
    if out is None:
        out = run_of(adapter).path / (f"{name}-{task}" if task else name)
        refuse_used(out)
    return adapter, out


def adapter_at(run: Path, *, doing: str, trust: bool) -> Path:
    """Find the adapter folder of ``run``; print a note if the run is unfinished."""
    from moslora.runs.run import locate_adapter, remark_on_unfinished

    run = as_run(run, trust_remote_code=trust)
    adapter = locate_adapter(run)
    remark = remark_on_unfinished(run, adapter, doing=doing)
    if remark:
        note(remark)
    return adapter
