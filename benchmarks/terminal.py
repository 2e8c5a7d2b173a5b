"""Draws docs/terminal.svg: the README's three commands on the small model, each in a terminal of its own.

    pip install pyte
    python -m benchmarks.terminal

Training is drawn in the middle, with its live line; the others at their end.
"""

import io
import os
import pty
import shlex
import struct
import sys
import tempfile
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

import pyte
from rich.console import Console
from rich.text import Text

from benchmarks import DOCS, ROOT

COLUMNS, LINES = 104, 60
COMMANDS = {
    "moslora train recipes/smollm2-135m.yaml": "step 40/",
    "moslora eval --tasks commonsense --limit 128": "",
    "moslora merge runs/smollm2-135m/": "",
}
"""Command -> what is on the screen when it is drawn; empty for the end."""


def screen_of(command: str, until: str, folder: Path) -> list[Text]:
    """The lines on the screen when ``until`` was first there, or at the end; the command itself always ends."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        words = shlex.split(command)
        os.execv(sys.executable, [sys.executable, "-m", *words])
    ioctl(terminal, TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    screen = pyte.Screen(COLUMNS, LINES)
    stream, drawn = pyte.ByteStream(screen), None
    while True:
        try:
            stream.feed(os.read(terminal, 65536))
        except OSError:  # the other end was closed
            break
        if until and drawn is None and any(until in line for line in screen.display):
            drawn = lines(screen)
    os.waitpid(process, 0)
    return drawn or lines(screen)


def lines(screen: pyte.Screen) -> list[Text]:
    """What is on the screen, with its colours, without the loading of weights and empty lines."""
    found = []
    for row in range(LINES):
        text = Text()
        for column in range(COLUMNS):
            cell = screen.buffer[row][column]
            color = {"default": "", "brown": "yellow"}.get(cell.fg, f"#{cell.fg}" if len(cell.fg) == 6 else cell.fg)
            text.append(cell.data, f"{'bold ' * cell.bold}{color}".strip())
        text.rstrip()
        if text.plain.strip() and "Loading weights" not in text.plain:
            found.append(text)
    return found


def main() -> None:
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "recipes").symlink_to(ROOT / "recipes")
        for command, until in COMMANDS.items():
            console.print(Text(f"$ {command}", style="bold green"))
            for line in screen_of(command, until, Path(folder)):
                console.print(line, overflow="crop", no_wrap=True)
            console.print()
    console.save_svg(str(DOCS / "terminal.svg"), title="moslora")


if __name__ == "__main__":
    main()
