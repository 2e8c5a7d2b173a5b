"""Ctrl-C and SIGTERM end a run between two steps, with a checkpoint."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from moslora.processes.launch import launched


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Collects SIGINTs and SIGTERMs while the block runs, for the loop to check; a second Ctrl-C stops at once."""
    signals: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if signals and number == signal.SIGINT:
            raise KeyboardInterrupt
        # One process of several may be stopped because another has failed; it does not promise what it cannot do.
        if not signals and not launched():
            # Not print: the handler may interrupt a print, and buffered streams are not reentrant.
            os.write(2, b"\nstopping after this step, then saving (Ctrl-C again to stop at once) ...\n")
        signals.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
