"""Errors with a message for the user, with which a command ends without a traceback.

A message is one clear line: what is wrong, where, and the fix. Several faults found together are several lines of
one error, so that a user fixes them in one go.
"""

import difflib
import shlex
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
"""Maximum number of faults that one error lists."""


def some(items: Iterable[object], *, separator: str = ", ", most: int = 3) -> str:
    """The first ``most`` items, and how many more there are: a large model has thousands of tensors."""
    shown = list(map(str, items))
    if len(shown) > most:
        shown[most:] = [f"… and {len(shown) - most} more"]
    return separator.join(shown)


def capped(faults: Iterable[str]) -> str:
    """A line for each fault, up to :data:`SHOWN_FAULTS`, and how many more there are."""
    return some(faults, separator="\n", most=SHOWN_FAULTS)


def by_row(faults: Mapping[str, Sequence[str]]) -> str:
    """A line for each fault of rows, with the first of the places where it is."""
    lines = []
    for what, (first, *others) in faults.items():
        more = f" (and {counted(len(others), 'more row')})" if others else ""
        lines.append(f"{first}: {what}{more}")
    return capped(lines)


def near_words(word: str, known: Iterable[str], most: int = 1) -> list[str]:
    """The words among ``known`` that ``word`` may be misspelt from, the closest first."""
    return difflib.get_close_matches(word, list(known), n=most)


def did_you_mean(words: Sequence[str], *, otherwise: str) -> str:
    """The fix for something unknown: the ``words`` that may be meant, or ``otherwise`` if there are none."""
    return f"did you mean {', '.join(words)}?" if words else otherwise


def counted(number: int, noun: str) -> str:
    """``1 row``, ``1,234 rows``."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun}s"


def first_line(error: BaseException) -> str:
    """First line of a library's error, with the next one if it ends in a colon; the error's type if it is empty."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    if lines[0].endswith(":") and len(lines) > 1:
        return f"{lines[0]} {lines[1].strip()}"
    return lines[0]


@contextmanager
def needing(package: str, what: str) -> Iterator[None]:
    """Says how to install the optional ``package`` if the block, which imports it for ``what``, fails to."""
    try:
        yield
    except ImportError as error:
        fault = "is not installed" if error.name == package else f"cannot be imported ({first_line(error)})"
        command = f"{shlex.quote(sys.executable)} -m pip install {shlex.quote(package)}"
        raise UsageError(f"{what}: {package} {fault}; {command}") from None


@contextmanager
def on_interrupt(message: str) -> Iterator[None]:
    """Turns Ctrl-C or SIGTERM inside the block into an `Interrupted` with ``message``."""
    try:
        yield
    except KeyboardInterrupt as stop:
        signal_number = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
        raise Interrupted(message, signal_number=signal_number) from None
