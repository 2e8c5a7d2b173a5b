"""Errors with a message for the user, and the words that messages share. A command ends with them without a traceback.

A message is one clear line: what is wrong, where, and the fix. Faults that are found together are several lines of one
error, so that a user fixes them in one go. Errors of the disk are in `moslora.files`.
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
    """A command stopped by a signal, such as that of Ctrl-C. Exit code 128 + the signal's number."""

    def __init__(self, message: str, *, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class Terminated(KeyboardInterrupt):
    """SIGTERM as an exception, raised where Ctrl-C would be, so that both run the same cleanup."""


SHOWN_FAULTS = 20
"""Maximum number of faults that one error lists."""


def some(items: Iterable[object], *, separator: str = ", ", most: int = 3) -> str:
    """Join the first ``most`` items, and say how many more there are: a large model has thousands of tensors."""
    shown = list(map(str, items))
    if len(shown) > most:
        shown[most:] = [f"… and {len(shown) - most} more"]
    return separator.join(shown)


def capped(faults: Iterable[str]) -> str:
    """Return a line for each fault, up to :data:`SHOWN_FAULTS`, and how many more there are."""
    return some(faults, separator="\n", most=SHOWN_FAULTS)


def by_row(faults: Mapping[str, Sequence[str]]) -> str:
    """Return a line for each fault, with its first row and the number of its other rows.

    Args:
        faults: what is wrong -> the places of its rows, such as ``rows.jsonl: line 3``.
    """
    lines = []
    for what, (first, *others) in faults.items():
        more = f" (and {counted(len(others), 'more row')})" if others else ""
        lines.append(f"{first}: {what}{more}")
    return capped(lines)


def near_words(word: str, known: Iterable[str], most: int = 1) -> list[str]:
    """Return the words among ``known`` that the user may have meant by ``word``, the closest first."""
    return difflib.get_close_matches(word, list(known), n=most)


def did_you_mean(words: Sequence[str], *, otherwise: str) -> str:
    """Write the fix for an unknown word: the ``words`` that may be meant, or ``otherwise`` if there are none."""
    return f"did you mean {', '.join(words)}?" if words else otherwise


def counted(number: int, noun: str) -> str:
    """Write a number with its noun: ``1 row``, ``1,234 rows``."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun}s"


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error, with the next line if the first ends in a colon; the error's type if
    it has no text."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    if lines[0].endswith(":") and len(lines) > 1:
        return f"{lines[0]} {lines[1].strip()}"
    return lines[0]


@contextmanager
def needing(package: str, what: str) -> Iterator[None]:
    """Say how to install the optional ``package`` if the block cannot import it.

    Args:
        package: its name on PyPI.
        what: the option or section that needs it, for the message.
    """
    try:
        yield
    except ImportError as error:
        fault = "is not installed"
        options = []
        if error.name != package:
            fault = f"cannot be imported ({first_line(error)})"
            options = ["--force-reinstall"]
        command = shlex.join([sys.executable, "-m", "pip", "install", *options, package])
        raise UsageError(f"{what}: {package} {fault}; {command}") from None


@contextmanager
def on_interrupt(message: str) -> Iterator[None]:
    """Turn Ctrl-C or SIGTERM inside the block into an `Interrupted` with ``message``."""
    try:
        yield
    except KeyboardInterrupt as stop:
        signal_number = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
        raise Interrupted(message, signal_number=signal_number) from None
