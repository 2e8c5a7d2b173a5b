"""A folder that PEFT wrote, wherever a run is named."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from moslora.console import say
from moslora.errors import UsageError
from moslora.runs import RUNS

if TYPE_CHECKING:
    from moslora.runs.named import Named


def as_run(path: Path, *, evaluated: bool = False, trust_remote_code: bool = False) -> Path:
    """``path``, or the run of the adapter that PEFT wrote there.

    At its first use the adapter is imported, as by ``moslora import``: into runs/NAME, or beside it if that is
    something else.

    Args:
        evaluated: the run's answers are needed, which one that is not imported yet does not have.
        trust_remote_code: the base's own Python code may run.
    """
    from moslora.files import in_use, once_per_machine, sha256
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


def named_run(named: "Named", *, trust_remote_code: bool) -> "Named":
    """``named``, or the run of the adapter that PEFT wrote there."""
    from moslora.runs.named import read_named

    path = Path(os.path.expanduser(named.name))
    run = as_run(path, trust_remote_code=trust_remote_code)
    if run == path:
        return named
    return read_named(str(run), trust_remote_code=trust_remote_code)
