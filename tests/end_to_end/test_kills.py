"""Commands that are killed while they write go on when they are given again, and lose nothing."""

import os
import sys
from pathlib import Path

import pytest

from forked_kit import python

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the paths of open files in /proc")
def test_commands_killed_at_some_of_their_writes_go_on_to_the_same_bytes():
    """`make soak` kills them at every write. In a process of its own, which has no threads: it forks."""
    command = ["-m", "benchmarks.checks.soak", "--every", "25", "--commands"]
    command += [
        "train",
        "train --resume, to the best",
        "train --resume, after a stop",
        "eval",
        "merge",
        "export",
        "import",
        "recipes copy",
    ]
    ran = python(*command, cwd=ROOT, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    said, errors = ran.communicate(timeout=300)
    assert ran.returncode == 0, errors[-3000:]
    (total,) = (line.split() for line in said.splitlines() if line.startswith("all"))
    assert int(total[2]) >= 15 and total[3:] == ["0", "0"], said
