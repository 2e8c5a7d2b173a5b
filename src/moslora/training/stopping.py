"""Stop requests: Ctrl-C and SIGTERM end a training between two steps."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from moslora.process_rank import launched


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Collect SIGINTs and SIGTERMs in a list, after which the loop ends; a second Ctrl-C stops at once."""
    signals: list[int] = []

    def collect(number: int, frame: FrameType | None) -> None:
        if signals and number == signal.SIGINT:
            raise KeyboardInterrupt
        signals.append(number)
        # One process of several may be stopped because another has failed; it does not promise what it cannot do.
        if len(signals) == 1 and not launched():
            # Not print: the handler may interrupt a print, and buffered streams are not reentrant.
            with suppress(OSError):  # of a terminal that is gone
                os.write(2, b"\nstopping after this step, then saving (Ctrl-C again to stop at once) ...\n")

    previous = {number: signal.signal(number, collect) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
