"""Ctrl-C and SIGTERM end a run between two steps, with a checkpoint."""

import os
import signal
from types import FrameType, TracebackType
from typing import Self


class StopRequest:
    """Notes the first SIGINT or SIGTERM while the block runs; a second Ctrl-C stops at once.

    Args:
        speaks: whether this process says so.
    """

    def __init__(self, *, speaks: bool = True) -> None:
        self.signal_number = 0
        self._speaks = speaks

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.signal_number and self._speaks:
            # Not print: a handler may interrupt one, and buffered streams refuse to be entered twice.
            os.write(2, b"\nstopping after this step, then saving (Ctrl-C again to stop at once) ...\n")
        self.signal_number = self.signal_number or number
