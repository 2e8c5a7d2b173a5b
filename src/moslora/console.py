"""Output of a command while it works: printed once, even by several processes. Does not load torch."""

import functools
import os
import sys

from moslora.process_rank import is_main_process

LABEL = "MOSLORA_LABEL"
"""Set where several commands print to one terminal: how the lines of this one begin."""


class Bold(str):
    """A text that a terminal shows in bold where it names the row of a table."""


def say(line: str) -> None:
    """Prints on the main process. A closed pipe or terminal does not end hours of work: the rest is dropped."""
    if not is_main_process():
        return
    try:
        print(os.environ.get(LABEL, "") + line, flush=True)
    except OSError:
        drop_output()


def note(line: str) -> None:
    """Prints a warning that stops nothing."""
    say(f"note: {line}")


@functools.cache
def note_once(line: str) -> None:
    """Prints a warning, once per process."""
    note(line)


def drop_output() -> None:
    """Sends the rest of the standard output to the null device."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
