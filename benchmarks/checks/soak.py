"""Kills commands at each of their writes: all must end as if nothing had happened, bit for bit.

    make soak                                              # this, and more random input and damages than in the tests
    python -m benchmarks.checks.soak --commands eval merge    # the writes of these commands alone

Each command of `tests/kits/commands_kit.py` is killed before each change that it makes to the disk, and within
each file that it writes, at half of its bytes. The same command is then given again, and must go on; of a new
training, the one that its refusal names. All files in the working folder and in the cache are compared with those of a
command that nothing stopped. Left out is what is measured: times and memory in metrics.jsonl and run.json.

Exits with 1 if a command did not go on or a byte differs.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import ROOT
from benchmarks.commands import command

sys.path.append(str(ROOT / "tests" / "kits"))

from commands_kit import commands as all_commands
from kill_kit import Findings, kill_everywhere, ready_to_fork
from world_kit import make_world


def main(*, every: int = 1, commands: tuple[str, ...] = ()) -> None:
    """Kills the ``commands``, or without any all, at one write in ``every``."""
    began = time.monotonic()
    ready_to_fork()
    findings = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["MOSLORA_HOME"] = str(folder / "home")
        make_world(folder)
        known = all_commands(folder)
        print(Findings.header(), flush=True)
        for number, name in enumerate(commands or known):
            found = kill_everywhere(known[name], folder / f"command-{number}", every=every)
            print(found.line(), *found.stuck, *found.lost, sep="\n", flush=True)
            findings.append(found)
    total = Findings.of_all(findings)
    print(f"{total.line()}\n{time.monotonic() - began:.0f} s", flush=True)
    if total.stuck or total.lost:
        sys.exit("FAILED: a kill was not survived; the lines above say where")


if __name__ == "__main__":
    command(main)
