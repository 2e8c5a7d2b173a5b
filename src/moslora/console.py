"""What a command tells while it works: one voice for all its processes, known before torch is loaded."""

import os
import sys


def is_main_process() -> bool:
    """Whether this is the process that speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def say(line: str) -> None:
    """Prints ``line``, of several processes on the main one alone.

    A reader who has gone, at a closed pipe or terminal, does not end hours of work: the rest goes nowhere.
    """
    if not is_main_process():
        return
    try:
        print(line, flush=True)
    except OSError:
        drop_output()


def note(line: str) -> None:
    """Says what a user should know, although nothing fails by it."""
    say(f"note: {line}")


def drop_output() -> None:
    """Sends the rest of the standard output nowhere, where its reader is gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
