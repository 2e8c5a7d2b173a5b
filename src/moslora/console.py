"""Output of a command while it works: printed once, even by several processes. Does not load torch."""

import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from moslora.process_rank import is_main_process

LABEL = "MOSLORA_LABEL"
"""Environment variable with the beginning of each line, set where several commands print to one terminal."""


def say(line: str) -> None:
    """Print a line on the main process. If the pipe or terminal is closed, drop all output and keep working."""
    if not is_main_process():
        return
    try:
        print(os.environ.get(LABEL, "") + line, flush=True)
    except OSError:
        drop_output()


def note(line: str) -> None:
    """Print a warning that stops nothing."""
    say(f"note: {line}")


@functools.cache
def note_once(line: str) -> None:
    """Print a warning, once per process."""
    note(line)


_warnings: dict[str, None] = {}


def warn(line: str) -> None:
    """Print a warning now, and again when the command ends."""
    if line not in _warnings:
        say(f"warning: {line}")
        _warnings[line] = None


def repeat_warnings() -> None:
    """Print the warnings of this command once more, and forget them."""
    for line in _warnings:
        say(f"warning: {line}")
    _warnings.clear()


def drop_output() -> None:
    """Send the rest of the standard output to the null device."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def without_output() -> Iterator[None]:
    """Inside the block, send the standard output of this process, and of those that it starts, to the null device."""
    kept = os.dup(sys.stdout.fileno())
    drop_output()
    try:
        yield
    finally:
        os.dup2(kept, sys.stdout.fileno())
        os.close(kept)
