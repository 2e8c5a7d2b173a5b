"""The ways in which a command may end badly without a traceback.

A message is one clear line: what is wrong, where, and the mend. Several faults found together are
several lines of one error, so that a user repairs them in one go.
"""

import signal
from collections.abc import Sequence


class MosloraError(Exception):
    """A failure with a message meant for the person at the terminal. Exit code 1."""

    exit_code = 1


class UsageError(MosloraError):
    """A wrong use: the recipe, an option or a path has to change before a retry. Exit code 2."""

    exit_code = 2


class Interrupted(MosloraError):
    """Asked to stop, by Ctrl-C or SIGTERM, and did. Exit code 128 + the signal's number."""

    def __init__(self, message: str, *, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised where Ctrl-C would have been, so that whatever cleans up after the one does after the other."""


SHOWN = 3
"""Things of a kind that a line names; a large model has thousands of tensors."""

SHOWN_FAULTS = 20
"""Lines of one error; more help nobody."""


def some(items: Sequence[str], *, separator: str = ", ", most: int = SHOWN) -> str:
    """The first few, and how many more there are."""
    more = [f"… and {len(items) - most} more"] if len(items) > most else []
    return separator.join([*items[:most], *more])


def capped(faults: Sequence[str]) -> str:
    """A line for each fault, up to :data:`SHOWN_FAULTS`, and how many more there are."""
    return some(faults, separator="\n", most=SHOWN_FAULTS)


def first_line(error: BaseException) -> str:
    """What an error of a library says first, with the line that a colon announces; its type, where it says nothing."""
    first, *others = str(error).strip().splitlines() or [type(error).__name__]
    return f"{first} {others[0].strip()}" if first.endswith(":") and others else first


def stopped(message: str, by: KeyboardInterrupt) -> Interrupted:
    """``message`` with the exit code of what stopped the command."""
    number = signal.SIGTERM if isinstance(by, Terminated) else signal.SIGINT
    return Interrupted(message, signal_number=number)
