"""Signs of life: the processes of a group tell each other that they run, however long their work takes.

A process that was killed closes its connections, and the others know at once. A process that was stopped, or whose
machine or network is gone, closes none: without signs of life the others would wait for it as long as for a slow one.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from moslora.ranks import master_address

BEAT = 10.0
"""Seconds between two signs of a process."""

SILENCE = 300.0
"""Seconds without a sign after which a process is lost. A thread gives the signs, and Python may let it wait for as
long as a slow disk takes to read a tensor of some GB."""

TICK = 1.0
"""Seconds between two looks at the silence of the others."""

LEFT = b"left"
"""The last sign of a process that has done its part."""


class Heartbeat:
    """The signs of life of one process, and the seconds for which each of the others has given none.

    The store is asked through a connection of its own: on another a process may wait for hours.

    Args:
        rank: of this process.
        size: number of processes.
        lose: called once with all ranks that are lost, in a thread of this class, to end this process.
    """

    def __init__(self, *, rank: int, size: int, lose: Callable[[list[int]], object]) -> None:
        self.rank = rank
        self.lose = lose
        self.keys = [f"moslora/alive/{each}" for each in range(size)]
        self.silence = dict.fromkeys((each for each in range(size) if each != rank), 0.0)
        self._store = TCPStore(
            *master_address(),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=SILENCE),
        )
        self._left: set[int] = set()  # ranks that have done their part, whose silence means nothing
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._tell, self._watch)]
        self._store.set(self.keys[rank], "0")

    def start(self) -> None:
        """Begins to give and to watch signs, once all processes have given a first one."""
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Ends; the others do not expect signs of this process any more."""
        self._ended.set()
        for thread in self._threads:  # or a sign on its way might be the last
            thread.join(timeout=5 * TICK)
        with suppress(RuntimeError):  # a store that ended with rank 0
            self._store.set(self.keys[self.rank], LEFT.decode())

    def _tell(self) -> None:
        """Gives signs and reads those of the others, as long as the store answers."""
        before: list[bytes] = []
        beats = 0
        with suppress(RuntimeError):  # the store has ended: silence follows
            while not self._ended.wait(BEAT):
                beats += 1
                self._store.set(self.keys[self.rank], str(beats))
                signs = self._store.multi_get(self.keys)
                for rank in self.silence:
                    if signs[rank] == LEFT:
                        self._left.add(rank)
                    if not before or signs[rank] != before[rank]:
                        self.silence[rank] = 0.0
                before = signs

    def _watch(self) -> None:
        """Counts the seconds without signs of the others, except those in which this process itself was stopped."""
        before = time.monotonic()
        while not self._ended.wait(TICK):
            now = time.monotonic()
            passed = min(now - before, 2 * TICK)
            before = now
            for rank in self.silence.keys() - self._left:
                self.silence[rank] += passed
            lost = [rank for rank, seconds in self.silence.items() if seconds > SILENCE and rank not in self._left]
            if lost:
                self.lose(lost)
                return
