"""How far a command is: on a terminal a live line, below whatever is printed meanwhile."""

import math
import sys
from contextlib import suppress
from itertools import accumulate

from rich import get_console
from rich.progress import BarColumn, Progress, SpinnerColumn, TimeRemainingColumn

from moslora.ranks import is_main_process


class Line(Progress):
    """``total`` units of work, each of about the same time. ``disable``: there is no terminal that can redraw a line,
    or another process has it."""

    def __init__(self, total: float, text: str) -> None:
        spinner = SpinnerColumn("dots" if get_console().encoding.startswith("utf") else "line")
        columns = spinner, "{task.description}", BarColumn(12), TimeRemainingColumn(), "left{task.fields[rest]}"
        super().__init__(*columns, speed_estimate_period=math.inf, redirect_stderr=sys.stderr.isatty())
        self.disable = not (total and is_main_process() and sys.stdout.isatty() and self.console.is_interactive)
        self.add_task(text, total=total, rest="")
        self.show(1e-9, text)  # rich estimates the time from the second update on

    def show(self, done: float, text: str, *fields: str) -> None:
        """``done`` units, what they are, and of further ``fields`` as many as fit, those that matter most first."""
        room = self.console.width - len(text) - 31  # spinner, bar, time left, blanks, and the terminal's own ^C
        fitting = [rest for rest in accumulate(fields, "{}  {}".format, initial="") if len(rest) <= room]
        self.update(self.task_ids[0], completed=done, description=text, rest=max(fitting, key=len, default=""))

    def stop(self) -> None:
        with suppress(OSError):  # a closed terminal does not end hours of work
            super().stop()
