"""The ways in which a command may end badly without a traceback.

A message is one clear line: what is wrong, where, and the fix. Several faults found together are several lines of
one error, so that a user fixes them in one go.
"""

import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class MosloraError(Exception):
    """A failure with a message for the person at the terminal. Exit code 1."""

    exit_code = 1


class UsageError(MosloraError):
    """Wrong use: the recipe, an option or a path has to change before a retry. Exit code 2."""

    exit_code = 2


class Diverged(MosloraError):
    """A training whose loss or gradient was not finite. Exit code 3."""

    exit_code = 3


class Interrupted(MosloraError):
    """Stopped by a signal, such as that of Ctrl-C. Exit code 128 + the signal's number."""

    def __init__(self, message: str, *, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised where Ctrl-C would be, so that both run the same cleanup."""


SHOWN_FAULTS = 20
"""Most lines of one error."""


def some(items: Sequence[str], *, separator: str = ", ", most: int = 3) -> str:
    """The first few items, and how many more there are: a large model has thousands of tensors."""
    more = [f"… and {len(items) - most} more"] if len(items) > most else []
    return separator.join([*items[:most], *more])


def capped(faults: Sequence[str]) -> str:
    """A line for each fault, up to :data:`SHOWN_FAULTS`, and how many more there are."""
    return some(faults, separator="\n", most=SHOWN_FAULTS)


def counted(number: int, noun: str) -> str:
    """``1 row``, ``1,234 rows``."""
    ending = "" if number == 1 else "s"
    return f"{number:,} {noun}{ending}"


def first_line(error: BaseException) -> str:
    """First line of a library's error, with the next one if it ends in a colon; the error's type if it is empty."""
    first, *others = str(error).strip().splitlines() or [type(error).__name__]
    return f"{first} {others[0].strip()}" if first.endswith(":") and others else first


@contextmanager
def needing(package: str, what: str) -> Iterator[None]:
    """Tells how to install the optional ``package`` if the block, which imports it for ``what``, cannot."""
    try:
        yield
    except ImportError as error:
        fault = "is not installed" if error.name == package else f"cannot be imported ({first_line(error)})"
        command = f"{shlex.quote(sys.executable)} -m pip install {shlex.quote(package)}"
        raise UsageError(f"{what}: {package} {fault}; {command}") from None


@contextmanager
def stopped(message: str) -> Iterator[None]:
    """Turns Ctrl-C or SIGTERM inside the block into an `Interrupted` with ``message``."""
    try:
        yield
    except KeyboardInterrupt as stop:
        number = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
        raise Interrupted(message, signal_number=number) from None
