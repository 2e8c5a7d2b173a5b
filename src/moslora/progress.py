"""Progress of a command: a live line at the end of a terminal's output."""

import math
import sys
from contextlib import suppress

from rich.progress import BarColumn, Progress, SpinnerColumn, TimeRemainingColumn

from moslora.process_rank import is_main_process


class Line(Progress):
    """A live line for ``total`` units of work, each of about the same time.

    ``disable`` is true where the output is no terminal, and on all processes but the main one.
    """

    def __init__(self, total: float, text: str) -> None:
        super().__init__(
            SpinnerColumn("line"),  # its characters are ASCII
            "{task.description}",
            BarColumn(12),
            TimeRemainingColumn(),
            "left{task.fields[rest]}",
            speed_estimate_period=math.inf,
            redirect_stderr=sys.stderr.isatty(),
        )
        self.disable = not (total and is_main_process() and sys.stdout.isatty() and self.console.is_interactive)
        self.add_task(text, total=total, rest="")
        self.show(1e-9, text)  # rich estimates the time from the second update on

    def show(self, done: float, text: str, *fields: str) -> None:
        """Show that ``done`` units are done, what they are, and as many of ``fields`` as fit into the line."""
        room = self.console.width - len(text) - 31  # spinner, bar, time left, blanks, and the terminal's own ^C
        rest = ""
        for field in fields:
            longer = f"{rest}  {field}"
            if len(longer) > room:
                break
            rest = longer
        self.update(self.task_ids[0], completed=done, description=text, rest=rest)

    def stop(self) -> None:
        with suppress(OSError):  # a closed terminal does not end hours of work
            super().stop()
