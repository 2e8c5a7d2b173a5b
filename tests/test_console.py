"""Output of a command while it works."""

import subprocess
import sys

PROGRAM = """
import subprocess
from moslora.console import say, without_output
say("before")
with without_output():
    say("own")
    subprocess.run(["echo", "of a process"])
say("after")
"""


def test_output_can_be_left_out_for_a_while():
    """Also that of other processes, and only the standard output."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("before\nafter\n", "")
